"""The files of a dataset: each with its caption and its inputs, or the reason why it is left out.

Directories are read in one pass each, and names are compared as text: brackets, spaces and any
script are letters like others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from musubi.config.dataset import DatasetEntry
from musubi.data.archives import unpacked
from musubi.data.listed import from_list
from musubi.data.media import VIDEO_EXTENSIONS, image_extensions
from musubi.data.source import Scan, Skipped, Source, captions_of, ending, of_kind, stem_of
from musubi.errors import DataError, system_reason
from musubi.plugin.inputs import Input
from musubi.untrusted import TextError, decoded, read_bytes, reason, text_fault

__all__ = ["Scan", "Skipped", "Source", "scan", "stem_of"]

CAPTION_LIMIT = 1 << 20
"""Bytes of the longest caption; encoders read a few thousand."""

_NUMBERED = re.compile(r"(.+)_(\d{1,9})")


def scan(entry: DatasetEntry) -> Scan:
    """Find a dataset's files. Captions are read; of images and videos only the first bytes of a WebP.

    An archive is unpacked first, into the cache directory, when that was not done yet.

    Raises:
        DataError: The directory, the archive or the list cannot be read, or a line of the list cannot be understood.
    """
    entry = unpacked(entry)
    found = from_list(entry) if entry.jsonl_file is not None else _from_directory(entry)
    return _all_or_none(_one_of_a_stem(found), entry)


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
        if ending(name) in known and of_kind(directory / name, entry.kind)
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
                f for f in files if f != name and stem_of(f) == stem and ending(f) not in known
            ]
            reason = f"{name} has no caption: there is no {caption_name}."
            if close:
                reason += f" Is {close[0]} meant? Then caption_extension is {ending(close[0])!r}."
            found.skipped.append(Skipped(path=path, reason=reason))
            continue
        texts, problem = _caption(root + caption_name, by_line=entry.rules.by_line)
        if problem:
            found.skipped.append(
                Skipped(path=path, reason=f"The caption {caption_name} of {name} {problem}.")
            )
            continue
        source = Source(
            kind=entry.kind,
            path=path,
            stem=stem,
            **captions_of(texts, entry.rules),
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
                fault = _fault_of(row) if ending(row.name) in known else None
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
        if name.startswith(".") or ending(name) == ".safetensors":
            continue
        reason = f"{name} is not one of the {mine} that can be read."
        if ending(name) in wrong and of_kind(directory / name, other[:-1]):
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


def _caption(path: str, *, by_line: bool = False) -> tuple[list[str], str | None]:
    """The text, or one for each line, and what is wrong with it."""
    try:
        text = decoded(read_bytes(path, limit=CAPTION_LIMIT)).strip()
    except (OSError, TextError) as error:
        return [], f"cannot be read: {reason(error)}"
    texts = [line.strip() for line in text.split("\n") if line.strip()] if by_line else [text]
    return texts, None if text else "is empty"


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
        if ending(name) not in known:
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
            if ending(name) in VIDEO_EXTENSIONS:
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


# both


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
