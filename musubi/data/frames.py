"""Which frames of a video are used: convert to the model's frame rate, then cut clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from musubi.errors import DataError

MOST_FRAMES = 4_000_000
"""Of one video at the model's rate: two days. A file may say that it lasts for years."""

DECODING_VERSION = 1
"""Raise it when the pixels that are read from videos change: their records are then made anew."""

SAME_RATE = 0.005
"""Rates that differ by less than this share count as one: 23.976 is 24."""


class Extraction(Protocol):
    """The keys of a dataset that say where clips are cut; `DatasetEntry` is one."""

    @property
    def frame_extraction(self) -> str: ...
    @property
    def target_frames(self) -> tuple[int, ...]: ...
    @property
    def frame_stride(self) -> int: ...
    @property
    def frame_sample(self) -> int: ...
    @property
    def max_frames(self) -> int: ...
    @property
    def period(self) -> int: ...


def windows(total: int, entry: Extraction) -> list[tuple[int, int]]:
    """Start and length of each clip of a video of `total` frames; each once, ascending.

    Ascending by start, so that the frames can be read in one pass.
    """
    mode = entry.frame_extraction
    if mode == "full":
        step = entry.period
        most = min(total, entry.max_frames)
        return [(0, (most - 1) // step * step + 1)] if most > 0 else []
    if mode == "longest":
        return [(0, length) for length in sorted(entry.target_frames) if length <= total][-1:]
    found: set[tuple[int, int]] = set()
    for length in entry.target_frames:
        last = total - length
        if last < 0:
            continue
        if mode == "head" or (mode == "uniform" and entry.frame_sample == 1):
            starts: Sequence[int] = (0,)
        elif mode == "chunk":
            starts = range(0, last + 1, length)
        elif mode == "slide":
            starts = range(0, last + 1, entry.frame_stride)
        elif entry.frame_sample > last:
            starts = range(last + 1)  # every place, however many are asked for
        else:
            starts = np.linspace(0, last, entry.frame_sample).astype(int).tolist()
        found |= {(start, length) for start in starts}
    return sorted(found)


def needed(entry: Extraction) -> int | None:
    """How many frames at the model's rate can be used at most; None when all may be."""
    if entry.frame_extraction == "full":
        return entry.max_frames
    if entry.frame_extraction in ("head", "longest") or (
        entry.frame_extraction == "uniform" and entry.frame_sample == 1
    ):
        return max(entry.target_frames)
    return None


def by_timestamps(times: np.ndarray, end: float, rate: float, tick: float) -> np.ndarray:
    """For each frame at `rate` the last source frame that is shown by then.

    Frames are left out where the source is faster, and repeated where it is slower or pauses.

    Args:
        times: When each frame is shown, in seconds, ascending from 0.
        end: When the last frame ends.
        rate: Frames per second to make.
        tick: The precision of the times, in seconds.
    """
    if len(times) == 0:
        return np.zeros(0, np.int64)
    gap = float(np.median(np.diff(times))) if len(times) > 1 else end
    if gap > 0 and not varies(times, tick) and abs((len(times) / end) / rate - 1) < SAME_RATE:
        return np.arange(len(times))
    # rounding moves a time, and the first one, by half a tick each
    slack = min(1.01 * tick, gap / 4)
    frames = end * rate
    if not 0 <= frames <= MOST_FRAMES:
        raise DataError(
            f"It says that it lasts {end:.6g} seconds, which is more than can be meant.",
            fix="Write its time stamps anew, with `ffmpeg -i OLD -c copy NEW`, or cut it.",
        )
    count = max(int(np.ceil(frames - 0.01)), 1)
    shown = np.arange(count) / rate
    return np.maximum(np.searchsorted(times, shown + slack, side="right") - 1, 0)


def by_source_fps(count: int, source: float, rate: float) -> np.ndarray:
    """For each frame at `rate` the source frame, when the source is said to have `source` per second.

    The places are summed up in float64 one frame at a time, as musubi-tuner did, so that the same
    frames are kept: 60 to 24 keeps 0, 3, 5, 8, 11.
    """
    kept: list[int] = []
    place, previous = 0.0, -1
    for i in range(count):
        number = int(place)
        place += rate / source
        if number != previous:
            kept += [i] * max(int(place) - number, 1)
            previous = number
    return np.asarray(kept, np.int64)


def varies(times: np.ndarray, tick: float) -> bool:
    """Whether frames are shown for times that differ by more than rounding explains."""
    if len(times) < 3:
        return False
    gaps = np.diff(times)
    return bool(gaps.max() - gaps.min() > max(2.01 * tick, 0.1 * float(np.median(gaps))))
