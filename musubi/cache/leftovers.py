"""Records that the dataset no longer names are deleted, and nothing else is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from musubi.cache.shelf import Shelf
from musubi.cache.store import Stored

_ABANDONED = 600.0
"""Seconds after which a temporary file cannot be one that is being written."""


def sweep(directory: Path) -> None:
    """Delete the temporary files that a killed run left in a cache directory."""
    for path in directory.glob(".musubi-*.tmp"):
        with contextlib.suppress(OSError):  # another run may be quicker
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def delete_leftovers(
    shelf: Shelf,
    heads: Mapping[str, Stored | None],
    named: Collection[str],
    spared: Collection[str] = (),
) -> list[Path]:
    """Delete records that are not named.

    A file is a record only when its metadata says so: a LoRA called `cat_toy.safetensors` in the
    same directory stays, and so does a file that cannot be read.

    Args:
        shelf: The cache directory.
        heads: Its media or its text records.
        named: File names that the dataset gives.
        spared: Base names of sources that could not be read this time; their records stay.

    Returns:
        What was deleted.
    """
    gone: list[Path] = []
    for name, head in heads.items():
        if name in named or head is None:
            continue
        if head.header is not None and head.header.source in spared:
            continue
        shelf.path(name).unlink(missing_ok=True)
        gone.append(shelf.path(name))
    return gone
