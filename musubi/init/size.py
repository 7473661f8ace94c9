"""The resolution and the length to train at: as large as the clips and the card allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from musubi.config.options import for_architecture
from musubi.config.task import Choice
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError
from musubi.estimate import cards
from musubi.plan.fit import fitting
from musubi.plan.sizes import USUAL
from musubi.plan.workload import Bucket, Workload, sized, workload
from musubi.plugin import Architecture, Quiet, Report


@dataclass(frozen=True)
class FittingSize:
    """What is trained at.

    Args:
        width: In pixels; with buckets on, the area counts.
        height: In pixels.
        frames: Of the longest clips.
        planned: Whether the planner found that this fits.
    """

    width: int
    height: int
    frames: int
    planned: bool


def choose(
    architecture: Architecture,
    choice: Choice,
    *,
    area: float,
    seconds: float,
    vram: str | None,
    motion: bool,
    report: Report,
) -> FittingSize:
    """The largest of the usual sizes that the clips fill and the card bears.

    Args:
        architecture: That is trained.
        choice: The task and variant.
        area: Pixels of a usual clip of the user's.
        seconds: Its length; 0 for pictures.
        vram: Of the card; None when it is not known.
        motion: Frames are given up last.
        report: Shown what is tried.
    """
    wanted = list(_candidates(choice, area, seconds, motion))
    if vram is None or choice.variant is None:
        width, height, frames = wanted[min(1, len(wanted) - 1)]
        return FittingSize(width, height, frames, planned=False)
    with report.progress("Looking for a size that fits", None, unit="size") as bar:
        about: Workload | None = None
        config = _config(architecture, choice, vram)
        for width, height, frames in wanted:
            bucket = Bucket(width, height, frames)
            if about is None:
                about = workload(
                    config, architecture, trains=True, report=Quiet(), buckets=(bucket,)
                )
            here = replace(about, buckets=(bucket,), case=sized(about.case, bucket))
            bar.advance()
            try:
                fitting(config, here, cards.of_device(), here=vram == "auto")
            except ConfigError:
                continue
            return FittingSize(width, height, frames, planned=True)
    width, height, frames = wanted[-1]
    report.warn(
        f"Not even {width}x{height} with {frames} frames fits {vram}; the files name that size all "
        "the same."
    )
    return FittingSize(width, height, frames, planned=False)


def _config(architecture: Architecture, choice: Choice, vram: str) -> Any:
    assert choice.variant is not None
    model: Any = for_architecture(TrainConfig, architecture, "train")
    return model(
        task=choice.variant.name,
        vram=vram,
        network_dim=32,
        optimizer_type="adamw8bit",
        mixed_precision="bf16",
    )


def _candidates(
    choice: Choice, area: float, seconds: float, motion: bool
) -> Iterator[tuple[int, int, int]]:
    """Width, height, frames: the largest first."""
    shape = choice.task.shape
    step, every = shape.side, shape.period
    most = choice.sampling.frames
    lengths = [1]
    if seconds > 0 and most > 1:
        own = int(seconds * shape.frame_rate)
        usual = (most, 65, 49, 33, 25, 17)
        lengths = sorted(
            {max(1, (min(n, own, most) - 1) // every * every + 1) for n in usual}, reverse=True
        )
    sizes = [(_near(w, step), _near(h, step)) for w, h in USUAL if w * h <= area * 1.1]
    if not sizes:  # clips smaller than any of these are trained at their own size
        side = _near(area**0.5, step)
        sizes = [(side, side)]
    pairs = (
        [(size, n) for n in lengths for size in sizes]
        if motion
        else [(size, n) for size in sizes for n in lengths]
    )
    for (w, h), n in pairs:
        yield w, h, n


def _near(side: float, step: int) -> int:
    return max(step, round(side / step) * step)
