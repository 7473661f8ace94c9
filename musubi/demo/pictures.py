"""Pictures of what was made: a contact sheet, two clips side by side, and moving ones for a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from musubi.data.media import probe_video, read_frames
from musubi.testing import media

GAP = 4
PAPER = 250


def read_clip(path: Path) -> np.ndarray:
    """Every frame, uint8 F H W 3."""
    info = probe_video(path)
    return np.stack([picture for _, picture in read_frames(info, range(info.frames))])


def contact_sheet(rows: Sequence[np.ndarray], path: Path, *, columns: int = 6) -> None:
    """A row of frames for each clip, evenly spaced in time, as one PNG."""
    strips = []
    for frames in rows:
        chosen = np.linspace(1, len(frames) - 1, columns).round().astype(int)
        strips.append(_joined([_padded(frames[i]) for i in chosen], axis=1))
    sheet = Image.fromarray(_joined(strips, axis=0))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.LANCZOS).save(path)


def side_by_side(left: Sequence[np.ndarray], right: Sequence[np.ndarray], path: Path) -> None:
    """Pairs of clips below each other, as one mp4, played three times."""
    pairs = zip(left, right, strict=True)
    frames = np.concatenate([np.concatenate(_even(a, b), axis=2) for a, b in pairs], axis=1)
    media.write_video(path, np.concatenate([_larger(frames, 2)] * 3))


def _even(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    length = min(len(a), len(b))
    return [a[:length], b[:length]]


def _larger(frames: np.ndarray, times: int) -> np.ndarray:
    return frames.repeat(times, axis=-3).repeat(times, axis=-2)


def _padded(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=PAPER)


def _joined(parts: Sequence[np.ndarray], *, axis: int) -> np.ndarray:
    return np.concatenate(list(parts), axis=axis)
