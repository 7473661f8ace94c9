"""What lies in a dataset: each file with its caption and its controls, or the reason it is left out.

Directories are read in one pass each, and names are compared as text: brackets, spaces and any
script are letters like others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from musubi.config.dataset import DatasetEntry
from musubi.data.images import is_animated_webp
from musubi.data.media import VIDEO_EXTENSIONS, image_extensions
from musubi.errors import DataError, nearest, system_reason
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
_CONTROL = re.compile(r"control_path(?:_(\d{1,9}))?")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One image or video to train on.

    Args:
        kind: What it is; a directory of images is a video.
        path: The file, or the directory.
        stem: Its name up to the last dot: the first part of its records' names, and unique.
        caption: Stripped, never empty.
        controls: Its control files, in order.
        dataset: Number of its dataset.
    """

    kind: Literal["image", "video"]
    path: Path
    stem: str
    caption: str
    controls: tuple[Path, ...] = ()
    dataset: int = 0


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
    return _all_or_none(_one_of_a_stem(found))


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
    pairs = _control_files(entry, stems, found)
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
            controls=pairs.get(name if entry.kind == "video" else stem, ()),
            dataset=entry.index,
        )
        found.sources.append(source)
    _say_what_else(entry, files - set(media) - captions, folders - set(media), found)
    if entry.control_directory is not None:
        return _without_partner(entry, found)
    return found


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
    kept = {entry.cache_directory.name, entry.control_directory and entry.control_directory.name}
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


def _control_files(
    entry: DatasetEntry, stems: list[str], found: Scan
) -> Mapping[str, tuple[Path, ...]]:
    """Of images: stem → controls, the exact name first, then `_N` by number. Of videos: name → control."""
    directory = entry.control_directory
    if directory is None:
        return {}
    files, folders = _listed(directory)
    if entry.kind == "video":
        return _VideoControls(directory, files, folders)
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
            reason = f"The control image {name} belongs to no image."
        elif rank in taken:
            reason = f"The control image {name} has the same place as {taken[rank]}."
        else:
            ranked.setdefault(owner, {})[rank] = name
            continue
        found.others.append(Skipped(path=directory / name, reason=reason))
    return {
        stem: tuple(directory / ranks[rank] for rank in sorted(ranks))
        for stem, ranks in ranked.items()
    }


class _VideoControls(dict[str, "tuple[Path, ...]"]):
    """The control of a video: the same name, else a directory of its stem, else another ending."""

    def __init__(self, directory: Path, files: set[str], folders: set[str]) -> None:
        super().__init__()
        self._directory, self._files, self._folders = directory, files, folders
        self._by_stem: dict[str, str] = {}
        for name in sorted(files, reverse=True):
            if _ending(name) in VIDEO_EXTENSIONS:
                self._by_stem[stem_of(name)] = name

    def get(self, name: str, default: Any = ()) -> Any:
        stem = stem_of(name)
        if name in self._files or name in self._folders:
            return (self._directory / name,)
        if stem in self._folders:
            return (self._directory / stem,)
        return (self._directory / self._by_stem[stem],) if stem in self._by_stem else default


def _without_partner(entry: DatasetEntry, found: Scan) -> Scan:
    alone = [s for s in found.sources if not s.controls]
    for source in alone:
        reason = (
            f"{source.path.name} has no control file: there is no {source.stem}.* in "
            f"{entry.control_directory}."
        )
        found.skipped.append(Skipped(path=source.path, reason=reason))
    left = [s for s in found.sources if s.controls]
    return Scan(sources=left, skipped=found.skipped, others=found.others)


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
            controls = _controls_of(row, entry)
        except (OSError, RuntimeError) as error:  # the latter for "~nobody"
            what = f"The path {row[key]!r:.200} of {where} cannot be used: {reason(error)}."
            found.skipped.append(Skipped(path=Path(entry.jsonl_file), reason=what))
            continue
        source = Source(
            kind=entry.kind,
            path=path,
            stem=stem_of(path.name),
            caption=str(row.get("caption") or "").strip(),
            controls=controls,
            dataset=entry.index,
        )
        why = None
        if absent := next((p for p in (path, *controls) if not p.exists()), None):
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


def _controls_of(row: Mapping[str, Any], entry: DatasetEntry) -> tuple[Path, ...]:
    """`control_path`, then `control_path_N` by number."""
    assert entry.jsonl_file is not None
    ranked: dict[int, str] = {}
    for key, value in row.items():
        match = _CONTROL.fullmatch(key)
        if match is not None and isinstance(value, str) and value:
            ranked[int(match.group(1)) if match.group(1) else -1] = value
    return tuple(_located(ranked[rank], entry.jsonl_file) for rank in sorted(ranked))


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


def _all_or_none(found: Scan) -> Scan:
    """A dataset is trained with controls or without: one record without would not stack."""
    if len({bool(s.controls) for s in found.sources}) < 2:
        return found
    for source in found.sources:
        if not source.controls:
            reason = f"{source.path.name} has no control_path, and others of the dataset have one."
            found.skipped.append(Skipped(path=source.path, reason=reason))
    left = [s for s in found.sources if s.controls]
    return Scan(sources=left, skipped=found.skipped, others=found.others)
