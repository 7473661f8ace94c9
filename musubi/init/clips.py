"""What a folder of clips and pictures holds: sizes, lengths, rates, captions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from musubi.data import media
from musubi.data.media import VIDEO_EXTENSIONS, image_extensions
from musubi.errors import DataError, MusubiError

CAPTIONS = (".txt", ".caption")


@dataclass(frozen=True)
class File:
    """A clip or a picture.

    Args:
        path: The file.
        width: In pixels.
        height: In pixels.
        seconds: Of a clip; 0 for a picture.
        caption: Its text; empty where there is none.
        ending: Of the caption's file.
    """

    path: Path
    width: int
    height: int
    seconds: float
    caption: str
    ending: str = ""


@dataclass
class Folder:
    """One folder, looked at.

    Args:
        path: The folder.
        videos: Clips.
        images: Pictures.
        broken: Files that cannot be read, with the reason.
    """

    path: Path
    videos: list[File] = field(default_factory=list[File])
    images: list[File] = field(default_factory=list[File])
    broken: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    @property
    def files(self) -> list[File]:
        """All of them."""
        return [*self.videos, *self.images]

    @property
    def ending(self) -> str:
        """How most captions' names end."""
        found = [f.ending for f in self.files if f.ending]
        return max(set(found), key=found.count) if found else CAPTIONS[0]


def look(folder: Path) -> Folder:
    """Read the head of every clip and picture right inside a folder.

    Raises:
        DataError: It is no folder, or holds neither.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder.", fix="Give the folder that your clips are in.")
    found, images = Folder(folder), image_extensions()
    for path in sorted(folder.iterdir()):
        ending = path.suffix.lower()
        if not path.is_file() or ending not in {*VIDEO_EXTENSIONS, *images}:
            continue
        caption, kind = _caption(path)
        try:
            if ending in VIDEO_EXTENSIONS:
                video = media.probe_video(path)
                found.videos.append(File(path, video.width, video.height, video.end, caption, kind))
            else:
                width, height = media.image_size(path)
                found.images.append(File(path, width, height, 0.0, caption, kind))
        except MusubiError as error:
            found.broken.append((path.name, error.what))
    if not found.files:
        inside = [p.name for p in sorted(folder.iterdir()) if p.is_dir()][:5]
        raise DataError(
            f"{folder} holds no clips and no pictures.",
            fix=f"Its folders are {', '.join(inside)}: give one of them." if inside else
            "Put your clips there, or give another folder.",
        )  # fmt: skip
    return found


def middle(values: Sequence[float]) -> float:
    """The median; 0 of nothing."""
    return statistics.median(values) if values else 0.0


def _caption(path: Path) -> tuple[str, str]:
    for ending in CAPTIONS:
        beside = path.with_suffix(ending)
        try:
            return beside.read_text(encoding="utf-8-sig").strip(), ending
        except (OSError, UnicodeDecodeError):
            continue
    return "", ""
