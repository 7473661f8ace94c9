"""The records of one cache directory, their heads read once."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi.cache.header import Header
from musubi.cache.store import Stored, possible_stems, read_head
from musubi.errors import DataError
from musubi.plugin.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """What lies in a cache directory.

    Args:
        directory: The directory; it need not exist.
        media: File name to head, for names that end as media records do. None is a file that is
            truncated, damaged, or not a record of this architecture.
        text: The same for text records.
        by_stem: Stem to the names of its media records that have our header.
        foreign: Stems, as far as names tell, of media records without our header.
    """

    directory: Path
    media: Mapping[str, Stored | None]
    text: Mapping[str, Stored | None]
    by_stem: Mapping[str, list[str]]
    foreign: frozenset[str] = frozenset()

    def path(self, name: str) -> Path:
        """Where a file of that name lies."""
        return self.directory / name


def read_shelf(
    directory: Path, architecture: Architecture, *, media: bool = True, text: bool = True
) -> Shelf:
    """Read the head of every record of one architecture in a directory.

    Args:
        directory: Nothing in it is a record when it does not exist.
        architecture: Whose records.
        media: Whether to read media records.
        text: Whether to read text records.
    """
    endings = {
        "media": f"_{architecture.suffix}.safetensors",
        "text": f"_{architecture.suffix}_te.safetensors",
    }
    found: dict[str, list[str]] = {"media": [], "text": []}
    if directory.is_dir():
        for name in sorted(os.listdir(directory)):  # noqa: PTH208 - names are all that is needed
            for kind, ending in endings.items():
                if name.endswith(ending):
                    found[kind].append(name)
    heads = {
        "media": _heads(directory, found["media"] if media else [], architecture),
        "text": _heads(directory, found["text"] if text else [], architecture),
    }
    by_stem: dict[str, list[str]] = {}
    foreign: set[str] = set()
    for name, head in heads["media"].items():
        if head is not None and head.header is not None:
            by_stem.setdefault(head.header.stem, []).append(name)
        elif head is not None:
            foreign.update(possible_stems(name))
    return Shelf(
        directory=directory,
        media=heads["media"],
        text=heads["text"],
        by_stem=by_stem,
        foreign=frozenset(foreign),
    )


def as_cached(
    directories: Iterable[Path], architecture: Architecture, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The architecture's own options, with those that shape records as the records were made.

    Training need not be told again what caching was told: an option that has its default takes the
    value that the first record names. So does one that generation has as well, since in training it
    says how previews are decoded.

    Args:
        directories: Of the records.
        architecture: Declares the options.
        options: Its own options and their values.
    """
    shaping = [
        o
        for o in architecture.options
        if o.recorded and ("generate" in o.commands or options.get(o.name) == o.default)
    ]
    found = dict(options)
    if not shaping:
        return found
    made: dict[str, Any] = {}
    for directory in directories:
        for header in _first_headers(directory, architecture):
            made = {**header.options, **made}
    return found | {o.name: made[o.name] for o in shaping if o.name in made}


def _first_headers(directory: Path, architecture: Architecture) -> Iterator[Header]:
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


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Keep the garbage collector from walking over every head again and again: half of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
