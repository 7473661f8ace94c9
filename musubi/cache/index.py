"""The records of one cache directory; their headers are read once."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from musubi.cache.header import RecordHeader
from musubi.cache.store import Stored, is_text_name, is_whole, possible_stems, read_head
from musubi.errors import DataError, system_reason
from musubi.plugin.architecture import Architecture
from musubi.plugin.report import Report
from musubi.untrusted import parse_json, read_text
from musubi.weights.write import atomic

_READERS = 4
"""Threads that compare records with their digests."""


@dataclass(frozen=True, kw_only=True)
class CacheIndex:
    """The records in a cache directory.

    Args:
        directory: The directory; it need not exist.
        media: File name to head, for names that end as media records do. None is a file that is
            truncated, damaged, or not a record of this architecture.
        text: The same for text records.
        by_stem: Stem to the names of its media records that have our header.
        foreign: Stem, as far as names tell, to the names of its media records without our header.
    """

    directory: Path
    media: Mapping[str, Stored | None]
    text: Mapping[str, Stored | None]
    by_stem: Mapping[str, list[str]]
    foreign: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])

    def path(self, name: str) -> Path:
        """The path of a file in this directory."""
        return self.directory / name


def read_index(
    directory: Path,
    architecture: Architecture,
    *,
    media: bool = True,
    text: bool = True,
    whole: bool = False,
) -> CacheIndex:
    """Read the head of every record of one architecture in a directory.

    Args:
        directory: The cache directory; if it does not exist, there are no records.
        architecture: Whose records.
        media: Whether to read media records.
        text: Whether to read text records.
        whole: Whether to read the records completely and compare them with their digests, which
            takes as long as the disk needs.
    """
    ending = f"_{architecture.suffix}.safetensors"
    found: dict[str, list[str]] = {"media": [], "text": []}
    if directory.is_dir():
        for name in sorted(os.listdir(directory)):  # noqa: PTH208 - names are all that is needed
            if name.endswith(ending):
                found["media"].append(name)
            elif is_text_name(name, architecture.suffix):
                found["text"].append(name)
    heads = {
        "media": _heads(directory, found["media"] if media else [], architecture),
        "text": _heads(directory, found["text"] if text else [], architecture),
    }
    if whole:
        heads = {kind: _compared(directory, found) for kind, found in heads.items()}
    by_stem: dict[str, list[str]] = {}
    foreign: dict[str, list[str]] = {}
    for name, head in heads["media"].items():
        if head is not None and head.header is not None:
            by_stem.setdefault(head.header.stem, []).append(name)
        elif head is not None:
            for stem in possible_stems(name):
                foreign.setdefault(stem, []).append(name)
    return CacheIndex(
        directory=directory,
        media=heads["media"],
        text=heads["text"],
        by_stem=by_stem,
        foreign=foreign,
    )


def look_again(
    cache_index: CacheIndex, architecture: Architecture, stems: Collection[str]
) -> CacheIndex:
    """The index with the media records of some stems as they are now.

    Args:
        cache_index: As it was found.
        architecture: Whose records.
        stems: Of the sources whose records another process may have made.
    """
    ending = f"_{architecture.suffix}.safetensors"
    names = os.listdir(cache_index.directory) if cache_index.directory.is_dir() else []  # noqa: PTH208 - as above
    names = [name for name in names if name.endswith(ending) and _of_some(name, stems)]
    media, by_stem = dict(cache_index.media), dict(cache_index.by_stem)
    for stem in stems:
        for name in by_stem.pop(stem, ()):
            media.pop(name, None)
    for name, head in _heads(cache_index.directory, sorted(names), architecture).items():
        media[name] = head
        if head is not None and head.header is not None:
            known = by_stem.get(head.header.stem, [])
            if name not in known:
                by_stem[head.header.stem] = [*known, name]
    return replace(cache_index, media=media, by_stem=by_stem)


def _of_some(name: str, stems: Collection[str]) -> bool:
    """Whether a record's name begins with one of the stems and an underscore."""
    place = name.find("_")
    while place >= 0:
        if name[:place] in stems:
            return True
        place = name.find("_", place + 1)
    return False


def as_cached(
    directories: Iterable[Path], architecture: Architecture, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The architecture's own options, with those that shape records as the records were made.

    So the options of caching need not be repeated for training: an option with its default value
    takes the value of the first record. So does an option that generation has too, since in
    training that option is for decoding previews.

    Args:
        directories: Of the records.
        architecture: Declares the options.
        options: Its own options and their values.
    """
    shaping = [
        o
        for o in architecture.options
        if o.affects_cache and ("generate" in o.commands or options.get(o.name) == o.default)
    ]
    found = dict(options)
    if not shaping:
        return found
    made: dict[str, Any] = {}
    for directory in directories:
        for header in _first_headers(directory, architecture):
            made = {**header.options, **made}
    return found | {o.name: made[o.name] for o in shaping if o.name in made}


def _first_headers(directory: Path, architecture: Architecture) -> Iterator[RecordHeader]:
    """The first header of a media record and of a text record."""
    names = sorted(os.listdir(directory)) if directory.is_dir() else []  # noqa: PTH208 - as above
    for ending in (f"_{architecture.suffix}.safetensors", f"_{architecture.suffix}_te.safetensors"):
        for name in names:
            if name.endswith(ending):
                head = _heads(directory, [name], architecture)[name]
                if head is not None and head.header is not None and not head.header.adopted:
                    yield head.header
                    break


def _heads(
    directory: Path, names: list[str], architecture: Architecture
) -> dict[str, Stored | None]:
    root = os.fspath(directory)
    heads: dict[str, Stored | None] = {}
    with collector_off():  # and no threads: they cost half as much again as the reading itself
        for name in names:
            try:
                head = read_head(os.path.join(root, name))  # noqa: PTH118 - 20,000 of them
            except DataError:
                head = None
            heads[name] = head if head is not None and head.belongs_to(architecture) else None
    return heads


def _compared(directory: Path, heads: Mapping[str, Stored | None]) -> dict[str, Stored | None]:
    """The heads; those of damaged records are marked."""
    sealed = [name for name, head in heads.items() if head and head.header and head.header.digest]
    with ThreadPoolExecutor(_READERS) as pool:  # digests let other threads run
        found = dict(
            zip(sealed, pool.map(lambda name: is_whole(directory / name), sealed), strict=True)
        )
    return {
        name: head._replace(damaged=True)
        if head is not None and not found.get(name, True)
        else head
        for name, head in heads.items()
    }


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Turn the garbage collector off while heads are read: it would take half of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One source that gave no record.

    Args:
        reason: A sentence or phrase.
        signature: Signature of the source at that time.
        plan: Digest of the settings at that time.
    """

    reason: str
    signature: str
    plan: str


def _path(directory: Path, architecture: Architecture, kind: str) -> Path:
    return directory / f".musubi-failed-{kind}.{architecture.suffix}.json"


def read_failures(directory: Path, architecture: Architecture, kind: str) -> dict[str, Failure]:
    """Source base name to why it failed; empty when nothing did.

    Args:
        directory: The cache directory.
        architecture: Whose records.
        kind: "media" or "text".
    """
    try:
        found = parse_json(read_text(_path(directory, architecture, kind)))
        return {name: Failure(**values) for name, values in found.items()}
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
    ):  # only a hint: a missing file does no harm
        return {}


def write_failures(
    directory: Path, architecture: Architecture, kind: str, failures: Mapping[str, Failure]
) -> None:
    """Save the failures of a run over a dataset; without failures the file is deleted."""
    path = _path(directory, architecture, kind)
    if not failures:
        with contextlib.suppress(OSError):  # only a hint
            path.unlink(missing_ok=True)
        return
    values = {name: asdict(failures[name]) for name in sorted(failures)}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")


def delete_leftovers(
    cache_index: CacheIndex,
    heads: Mapping[str, Stored | None],
    named: Collection[str],
    spared: Collection[str] = (),
    *,
    report: Report,
) -> list[Path]:
    """Delete records that are not named.

    A file is a record only when its metadata says so: a LoRA called `cat_toy.safetensors` in the
    same directory stays, and so does a file that cannot be read.

    Args:
        cache_index: The cache directory.
        heads: Its media or its text records.
        named: File names of records that the dataset needs.
        spared: Base names of sources that could not be read this time; their records stay.
        report: Gets a warning about records that cannot be deleted.

    Returns:
        The deleted records.
    """
    gone: list[Path] = []
    for name, head in heads.items():
        if name in named or head is None:
            continue
        if head.header is not None and head.header.source in spared:
            continue
        try:
            cache_index.path(name).unlink(missing_ok=True)
        except OSError as error:
            report.warn(f"{cache_index.path(name)} could not be deleted: {system_reason(error)}.")
            continue
        gone.append(cache_index.path(name))
    return gone
