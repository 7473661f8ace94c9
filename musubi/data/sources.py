"""What lies in a dataset: each file with its caption and its controls, or the reason it is left out.

Directories are read in one pass each, and names are compared as text: brackets, spaces and any
script are letters like others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from musubi.config.dataset import DatasetEntry
from musubi.data.images import is_animated_webp
from musubi.data.media import VIDEO_EXTENSIONS, image_extensions
from musubi.errors import DataError, nearest, system_reason
from musubi.plugin.inputs import Input
from musubi.untrusted import (
    TextError,
    check_path,
    decoded,
    parse_json,
    read_bytes,
    read_text,
    reason,
    text_fault,
)

CAPTION_LIMIT = 1 << 20
"""Bytes of the longest caption; encoders read a few thousand."""

LIST_LIMIT = 1 << 30
"""Bytes of the longest list of a dataset."""

_NUMBERED = re.compile(r"(.+)_(\d{1,9})")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One image or video to train on.

    Args:
        kind: What it is; a directory of images is a video.
        path: The file, or the directory.
        stem: Its name up to the last dot: the first part of its records' names, and unique.
        caption: Stripped, never empty.
        inputs: Name of an input → the files given for it, in order.
        dataset: Number of its dataset.
    """

    kind: Literal["image", "video"]
    path: Path
    stem: str
    caption: str
    inputs: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    dataset: int = 0

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file or directory that its media records are made of."""
        return (self.path, *(path for given in self.inputs.values() for path in given))


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that is left out.

    Args:
        path: The file.
        reason: One sentence that names it.
    """

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A dataset's files.

    Args:
        sources: In the order of their names.
        skipped: Images and videos that cannot be used.
        others: What else lies there and belongs to nothing: not an error, but worth a look.
    """

    sources: list[Source]
    skipped: list[Skipped] = field(default_factory=list)
    others: list[Skipped] = field(default_factory=list)


def scan(entry: DatasetEntry) -> Scan:
    """Find a dataset's files. Captions are read; of images and videos only the first bytes of a WebP.

    Raises:
        DataError: The directory or the list cannot be read, or a line of the list cannot be understood.
    """
    found = _from_list(entry) if entry.jsonl_file is not None else _from_directory(entry)
    return _all_or_none(_one_of_a_stem(found), entry)


def stem_of(name: str) -> str:
    """A name up to its last dot."""
    return os.path.splitext(name)[0]  # noqa: PTH122 - 10,000 of them are counted in milliseconds


# directories


def _from_directory(entry: DatasetEntry) -> Scan:
    directory, extension = entry.directory, entry.caption_extension
    assert directory is not None and extension is not None
    known = VIDEO_EXTENSIONS if entry.kind == "video" else image_extensions()
    found = Scan(sources=[])
    files, folders = _listed(directory, known, found.skipped)
    media = [
        name
        for name in sorted(files)
        if _ending(name) in known and _of_kind(directory / name, entry.kind)
    ]
    if entry.kind == "video":  # a folder of frames is meant when it has a caption
        media += [name for name in sorted(folders) if stem_of(name) + extension in files]
    stems = [stem_of(name) for name in media]
    partners = {one.name: _partners(entry, one, stems, found) for one in entry.inputs}
    captions: set[str] = set()
    root = os.path.join(directory, "")  # noqa: PTH118 - joining texts is what 10,000 files can afford
    for name, stem in zip(media, stems, strict=True):
        path, caption_name = directory / name, stem + extension
        captions.add(caption_name)
        if caption_name not in files:
            close = [
                f for f in files if f != name and stem_of(f) == stem and _ending(f) not in known
            ]
            reason = f"{name} has no caption: there is no {caption_name}."
            if close:
                reason += f" Is {close[0]} meant? Then caption_extension is {_ending(close[0])!r}."
            found.skipped.append(Skipped(path=path, reason=reason))
            continue
        caption, problem = _caption(root + caption_name)
        if problem:
            found.skipped.append(
                Skipped(path=path, reason=f"The caption {caption_name} of {name} {problem}.")
            )
            continue
        source = Source(
            kind=entry.kind,
            path=path,
            stem=stem,
            caption=caption,
            inputs={n: given for n, of in partners.items() if (given := of(name, stem))},
            dataset=entry.index,
        )
        found.sources.append(source)
    _say_what_else(entry, files - set(media) - captions, folders - set(media), found)
    return _without_partner(entry, found)


def _listed(
    directory: Path, known: Collection[str] = (), skipped: list[Skipped] | None = None
) -> tuple[set[str], set[str]]:
    """The names of files and of folders.

    What has the ending of a file that is `known`, and is none (a pipe, a link that leads nowhere or in a
    circle, a name that is not UTF-8), is not among them: `skipped` says why.
    """
    files: set[str] = set()
    folders: set[str] = set()
    try:
        with os.scandir(directory) as rows:
            for row in rows:
                fault = _fault_of(row) if _ending(row.name) in known else None
                if fault is not None:
                    if skipped is not None:
                        what = f"{row.name} {fault}."
                        skipped.append(Skipped(path=directory / row.name, reason=what))
                elif _is_folder(row):
                    folders.add(row.name)
                else:
                    files.add(row.name)
    except OSError as error:
        raise DataError(
            f"The directory {directory} cannot be read: {system_reason(error)}.",
            fix="Check its permissions.",
        ) from error
    return files, folders


def _is_folder(row: os.DirEntry[str]) -> bool:
    try:
        return row.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _fault_of(row: os.DirEntry[str]) -> str | None:
    fault = text_fault(row.name)
    if fault is not None:
        return f"has a name that is not UTF-8: {fault}"
    try:
        if row.is_file() or row.is_dir():
            return None
        row.stat()
    except OSError as error:
        return f"cannot be read: {system_reason(error)}"
    return "is a pipe or a device and no file"


def _say_what_else(entry: DatasetEntry, files: set[str], folders: set[str], found: Scan) -> None:
    directory = entry.directory
    assert directory is not None
    mine, other = ("images", "videos") if entry.kind == "image" else ("videos", "images")
    wrong = image_extensions() if entry.kind == "video" else VIDEO_EXTENSIONS
    for name in sorted(files):
        if name.startswith(".") or _ending(name) == ".safetensors":
            continue
        reason = f"{name} is not one of the {mine} that can be read."
        if _ending(name) in wrong and _of_kind(directory / name, other[:-1]):
            reason = f"{name} is one of the {other}: give {other[:-1]}_directory for these."
        elif name.endswith(entry.caption_extension or ".txt"):
            reason = f"{name} is the caption of nothing."
        found.others.append(Skipped(path=directory / name, reason=reason))
    kept = {entry.cache_directory.name, *(path.name for path in entry.directories.values())}
    for name in sorted(folders - kept):
        reason = f"The folder {name} is not looked into: give it as a dataset of its own."
        if entry.kind == "video":
            reason += f" Were it a video in frames, it would need {name}{entry.caption_extension}."
        found.others.append(Skipped(path=directory / name, reason=reason))


def _caption(path: str) -> tuple[str, str | None]:
    """The text, or what is wrong with it."""
    try:
        text = decoded(read_bytes(path, limit=CAPTION_LIMIT)).strip()
    except (OSError, TextError) as error:
        return "", f"cannot be read: {reason(error)}"
    return text, None if text else "is empty"


_Partners = Callable[[str, str], tuple[Path, ...]]
"""`(name, stem) -> files`: what an input has for the image or video of that name."""


def _partners(entry: DatasetEntry, wanted: Input, stems: list[str], found: Scan) -> _Partners:
    """Where an input's files are found: by the name of the clip, or by its stem."""
    directory = entry.directories.get(wanted.name)
    if directory is None:
        return lambda name, stem: ()
    files, folders = _listed(directory)
    videos = _VideoPartners(directory, files, folders)
    if entry.kind == "video" and wanted.kind == "video":
        return lambda name, stem: videos.get(name)
    images = _image_partners(wanted, directory, files, stems, found)
    if entry.kind == "video" and wanted.kind == "mask":  # one for all frames, or one for each
        return lambda name, stem: images.get(stem) or videos.get(name)
    return lambda name, stem: images.get(stem, ())


def _image_partners(
    wanted: Input, directory: Path, files: set[str], stems: list[str], found: Scan
) -> Mapping[str, tuple[Path, ...]]:
    """Stem → images, the exact name first, then `_N` by number."""
    known, targets = image_extensions(), set(stems)
    ranked: dict[str, dict[int, str]] = {}
    for name in sorted(files):
        if _ending(name) not in known:
            continue
        stem = stem_of(name)
        numbered = _NUMBERED.fullmatch(stem)
        owner, rank = stem, -1
        if stem not in targets and numbered is not None:
            owner, rank = numbered.group(1), int(numbered.group(2))
        taken = ranked.get(owner, {})
        if owner not in targets:
            reason = f"The {wanted.name} image {name} belongs to no image."
        elif rank in taken:
            reason = f"The {wanted.name} image {name} has the same place as {taken[rank]}."
        elif taken and not wanted.many:
            reason = f"The {wanted.name} image {name} is not used: {next(iter(taken.values()))} is."
        else:
            ranked.setdefault(owner, {})[rank] = name
            continue
        found.others.append(Skipped(path=directory / name, reason=reason))
    return {
        stem: tuple(directory / ranks[rank] for rank in sorted(ranks))
        for stem, ranks in ranked.items()
    }


class _VideoPartners:
    """The partner of a video: the same name, else a directory of its stem, else another ending."""

    def __init__(self, directory: Path, files: set[str], folders: set[str]) -> None:
        self._directory, self._files, self._folders = directory, files, folders
        self._by_stem: dict[str, str] = {}
        for name in sorted(files, reverse=True):
            if _ending(name) in VIDEO_EXTENSIONS:
                self._by_stem[stem_of(name)] = name

    def get(self, name: str) -> tuple[Path, ...]:
        """The files of the video of that name: one, or none."""
        stem = stem_of(name)
        if name in self._files or name in self._folders:
            return (self._directory / name,)
        if stem in self._folders:
            return (self._directory / stem,)
        return (self._directory / self._by_stem[stem],) if stem in self._by_stem else ()


def _without_partner(entry: DatasetEntry, found: Scan) -> Scan:
    """Leave out the clips that lack a file in a directory that the dataset names."""
    for name, directory in entry.directories.items():
        kept: list[Source] = []
        for source in found.sources:
            if name in source.inputs:
                kept.append(source)
                continue
            reason = f"{source.path.name} has no {name} file: there is no {source.stem}.* in {directory}."
            found.skipped.append(Skipped(path=source.path, reason=reason))
        found = Scan(sources=kept, skipped=found.skipped, others=found.others)
    return found


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - see stem_of


# lists


def _from_list(entry: DatasetEntry) -> Scan:
    assert entry.jsonl_file is not None
    found = Scan(sources=[])
    key = f"{entry.kind}_path"
    for number, row in _rows(entry.jsonl_file):
        where = f"{entry.jsonl_file}, line {number}"
        if not isinstance(row.get(key), str):
            close = nearest(key, [k for k in row if k != "caption"])
            raise DataError(
                f"{where} has no {key!r}.",
                fix=f"It has {close!r}." if close else f'Write {{"{key}": "…", "caption": "…"}}.',
            )
        try:
            path = _located(row[key], entry.jsonl_file)
            inputs = _inputs_of(row, entry)
        except (OSError, RuntimeError) as error:  # the latter for "~nobody"
            what = f"The path {row[key]!r:.200} of {where} cannot be used: {reason(error)}."
            found.skipped.append(Skipped(path=Path(entry.jsonl_file), reason=what))
            continue
        source = Source(
            kind=entry.kind,
            path=path,
            stem=stem_of(path.name),
            caption=str(row.get("caption") or "").strip(),
            inputs=inputs,
            dataset=entry.index,
        )
        why = None
        if absent := next((p for p in source.paths if not p.exists()), None):
            why = f"{absent} of {where} does not exist."
        elif "caption" in row and not isinstance(row["caption"], str):
            why = f"The caption of {path.name} ({where}) is not a text."
        elif not source.caption:
            why = f"{path.name} has no caption, or an empty one ({where})."
        elif fault := text_fault(source.caption) or text_fault(path.name):
            why = f"{path.name} or its caption cannot be used ({where}): {fault}."
        elif other := _of_another_kind(path, entry):
            why = f"{other} ({where})."
        if why:
            found.skipped.append(Skipped(path=path, reason=why))
        else:
            found.sources.append(source)
    found.sources.sort(key=lambda s: (s.path.name, str(s.path)))
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = read_text(path, limit=LIST_LIMIT).split("\n")
    except (OSError, TextError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except TextError as error:
            raise DataError(
                f"{path}, line {number} is not JSON: {error}.",
                fix="Each line is one object in braces; a Windows path needs double backslashes.",
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number} is not an object.", fix='Write {"caption": "…", …}.'
            )
        yield number, row


def _located(text: str, listing: Path) -> Path:
    """From the working directory, or, when there is nothing, from the directory of the list."""
    check_path(text)
    path = Path(text).expanduser()
    if path.is_absolute() or path.exists() or not (listing.parent / path).exists():
        return path
    return listing.parent / path


def _inputs_of(row: Mapping[str, Any], entry: DatasetEntry) -> dict[str, tuple[Path, ...]]:
    """For each input what the line names: its key, then the key with a number, by number."""
    assert entry.jsonl_file is not None
    found: dict[str, tuple[Path, ...]] = {}
    for one in entry.inputs:
        if one.column is None:
            continue
        ranked: dict[int, str] = {}
        for key, value in row.items():
            match = re.fullmatch(rf"{re.escape(one.column)}(?:_(\d{{1,9}}))?", key)
            if match is not None and isinstance(value, str) and value:
                ranked[int(match.group(1)) if match.group(1) else -1] = value
        files = [_located(ranked[rank], entry.jsonl_file) for rank in sorted(ranked)]
        if files:
            found[one.name] = tuple(files if one.many else files[:1])
    return found


def _of_another_kind(path: Path, entry: DatasetEntry) -> str | None:
    if path.is_dir():
        return f"{path.name} is a directory" if entry.kind == "image" else None
    if not path.is_file():
        return f"{path.name} is a pipe or a device and no file"
    known = VIDEO_EXTENSIONS if entry.kind == "video" else image_extensions()
    if _ending(path.name) in known and _of_kind(path, entry.kind):
        return None
    return f"{path.name} is not one of the {entry.kind}s that can be read"


# both


def _of_kind(path: Path, kind: str) -> bool:
    """A WebP that moves is a video, and one that does not is an image; other endings tell."""
    if _ending(path.name) != ".webp":
        return True
    return is_animated_webp(path) == (kind == "video")


def _one_of_a_stem(found: Scan) -> Scan:
    """Records are named after the stem, so the second file of one stem has no place for its own."""
    first: dict[str, Source] = {}
    for source in found.sources:
        kept = first.setdefault(os.path.normcase(source.stem), source)
        if kept is not source:
            other = kept.path.name if kept.path.name != source.path.name else str(kept.path)
            reason = (
                f"{source.path.name} has the same name as {other} up to the ending; rename one."
            )
            if kept.path.resolve() == source.path.resolve():
                reason = f"{source.path.name} is listed more than once; its first line is used."
            found.skipped.append(Skipped(path=source.path, reason=reason))
    return Scan(sources=list(first.values()), skipped=found.skipped, others=found.others)


def _all_or_none(found: Scan, entry: DatasetEntry) -> Scan:
    """A dataset is trained with an input or without: one record without would not stack.

    An input that is required and that no clip has leaves nothing.
    """
    for one in entry.inputs:
        having = [s for s in found.sources if one.name in s.inputs]
        if len(having) == len(found.sources) or (not having and not one.required):
            continue
        names = " or ".join(filter(None, (one.column, one.directory)))
        for source in found.sources:
            if one.name not in source.inputs:
                reason = f"{source.path.name} has no {one.column or one.name}, and others of the dataset have one."
                if not having:
                    reason = f"{source.path.name} has no {one.name}: the dataset gives no {names}."
                found.skipped.append(Skipped(path=source.path, reason=reason))
        found = Scan(sources=having, skipped=found.skipped, others=found.others)
    return found
