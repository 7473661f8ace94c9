"""`musubi cache preview`: as a page, every clip as it will be trained, with its caption and its bucket."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musubi.config.cache import CachePreviewConfig
from musubi.data import clips, preview
from musubi.data.clips import ClipPlan
from musubi.data.survey import Surveyed, threads_by_default
from musubi.errors import RunError, counted, system_reason
from musubi.pages import document, pictures
from musubi.pages.embed import TOO_MUCH
from musubi.plugin import Architecture, Clip, Report

BUDGET = 60_000_000
"""Bytes of clips in one page; behind it only their first frames are shown, and then none."""


def run(config: CachePreviewConfig, architecture: Architecture, report: Report) -> None:
    """Show what will be trained, in the mode that was asked for.

    Raises:
        ConfigError: The dataset file cannot be used.
        DataError: It gives nothing to train on.
        RunError: The directory cannot be written.
    """
    if config.mode != "html":
        preview.run(config, architecture, report)
        return
    task, found = preview.surveyed(config, architecture, report)
    rate = task.shape.frame_rate
    page = Path(config.output) / "dataset.html"
    shown = _Shown(rate)
    workers = config.num_workers or threads_by_default()
    datasets = [
        _dataset(one, shown, preview.decoded(one, workers, report, config.console_num_images), rate)
        for one in found
    ]  # fmt: skip
    total = sum(len(one.plans) for one in found)
    data: dict[str, Any] = {
        "view": "dataset",
        "name": Path(config.dataset_config).name,
        "about": f"{counted(total, 'clip')} as {architecture.title} will be trained on them: cut out, at "
        f"{rate:g} frames per second.",
        "made": time.time(),
        "datasets": datasets,
        "thinned": f"{counted(shown.left_out, 'clip')} not shown: {TOO_MUCH}."
        if shown.left_out
        else "",
    }
    try:
        document.write(page, f"{data['name']} - musubi", data)
    except OSError as error:
        raise RunError(
            f"{page} cannot be written: {system_reason(error)}.", fix="Give another --output."
        ) from error
    report.note(f"Wrote {page}, which shows {counted(total, 'clip')}.")


class _Shown:
    """Small copies of clips, as many as a page can bear."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.left_out = 0
        self._spent = 0

    def of(self, clip: Clip) -> dict[str, Any]:
        """A clip, and to the right of it what was given beside it and has its size."""
        if self._spent > BUDGET:
            self.left_out += 1
            return {"why": TOO_MUCH}
        frames = _beside([clip.frames, *_same_size(clip)])
        if len(frames) == 1 or self._spent > BUDGET * 0.8:
            found = {"src": pictures.still(frames[0], pictures.SIDE), "kind": "image"}
        else:
            data = pictures.clip(frames, self.rate)
            found = {"src": pictures.video_address(data), "kind": "video"}
        self._spent += len(found["src"])
        return found


def _same_size(clip: Clip) -> list[np.ndarray]:
    size = clip.frames.shape[1:3]
    return [f for given in clip.inputs.values() for f in given if f.shape[1:3] == size]


def _beside(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Clips side by side, as long as the longest; what is transparent is laid over white."""
    length = max(len(part) for part in parts)
    return np.concatenate([_opaque(_held(part, length)) for part in parts], axis=2)


def _held(frames: np.ndarray, length: int) -> np.ndarray:
    return frames[np.minimum(np.arange(length), len(frames) - 1)]


def _opaque(frames: np.ndarray) -> np.ndarray:
    if frames.shape[-1] == 3:
        return frames
    if frames.shape[-1] == 1:
        return frames.repeat(3, axis=-1)
    alpha = frames[..., 3:].astype(np.float32) / 255
    return (frames[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def _dataset(
    one: Surveyed,
    shown: _Shown,
    decoded: Iterator[tuple[ClipPlan, Clip]],
    rate: float,
) -> dict[str, Any]:
    entry = one.entry
    about = [
        f"{counted(len(one.plans), 'clip')} from {one.used} files",
        f"batch size {entry.batch_size}",
    ]
    if entry.num_repeats > 1:
        about.append(f"{entry.num_repeats} repeats")
    counts = Counter(_bucket(plan) for plan in one.plans)
    return {
        "title": f"Dataset {entry.index + 1}: {entry.place.name}",
        "about": ", ".join(about),
        "notes": clips.conversions(one.plans, entry, rate),
        "buckets": [{"name": name, "clips": n} for name, n in counts.most_common()],
        "clips": [
            {
                "name": plan.name,
                "caption": plan.source.caption,
                "bucket": _bucket(plan),
                "meta": f"{plan.size[0]}×{plan.size[1]} to {_bucket(plan)}",
                "media": shown.of(clip),
            }
            for plan, clip in decoded
        ],
        "skipped": [{"name": s.path.name, "reason": s.reason} for s in (*one.skipped, *one.others)],
    }


def _bucket(plan: ClipPlan) -> str:
    size, frames = f"{plan.bucket[0]}×{plan.bucket[1]}", len(plan.frames)
    return f"{size}, {frames} frames" if frames > 1 else size
