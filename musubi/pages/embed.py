"""Files inside a page: made small, kept in memory between two drawings, and no more than a page can bear."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from av.error import FFmpegError
from PIL import Image

from musubi.pages import pictures

BUDGET = 24_000_000
"""Bytes of embedded files in one page."""
TOO_MUCH = "left out to keep this page small"


@dataclass
class Embedder:
    """Makes small copies of clips and images, as data addresses.

    Args:
        home: The folder that the page lies in: links to the files begin there.
        budget: Bytes of small copies in one page; what comes later is linked alone.
    """

    home: Path
    budget: int = BUDGET
    left_out: int = 0
    _spent: int = 0
    _known: dict[tuple[Path, int], dict[str, Any]] = field(
        default_factory=dict[tuple[Path, int], "dict[str, Any]"]
    )

    def begin(self) -> None:
        """Begin a page."""
        self._spent = self.left_out = 0

    def __call__(self, path: Path) -> Mapping[str, Any]:
        """A file as the page shows it."""
        full = {"full": link(path, self.home)}
        if self._spent >= self.budget:
            self.left_out += 1
            return {"why": TOO_MUCH, **full}
        try:
            key = path, path.stat().st_mtime_ns
            if key not in self._known:
                self._known[key] = small(path)
        except (OSError, ValueError, FFmpegError):
            return {"why": "cannot be read", **full}
        found = self._known[key]
        self._spent += len(found["src"])
        return {**found, **full}


def small(path: Path) -> dict[str, Any]:
    """A small copy of a video or an image.

    Raises:
        OSError, ValueError, FFmpegError: It cannot be read.
    """
    if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB"))
        return {
            "src": pictures.still(picture, pictures.SIDE),
            "kind": "image",
            "pixel": max(picture.shape[:2]) < pictures.SIDE // 3,
        }
    return {"src": pictures.video_address(pictures.shrunk(path)), "kind": "video"}


def link(path: Path, home: Path) -> str:
    """The address of a file as seen from a page in `home`."""
    try:
        return quote(Path(os.path.relpath(path, home)).as_posix())
    except ValueError:  # another drive
        return path.resolve().as_uri()
