"""Chooses the denoiser (expert) of a task for a noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from musubi.errors import ConfigError
from musubi.plugin.architecture import Task


class Experts:
    """The denoisers of a task, each with the noise levels that it handles.

    Args:
        task: Names the denoisers.
        options: The architecture's own options, which may move the levels.
        names: Only these denoisers; None: all.

    Raises:
        ConfigError: A noise level is handled by no denoiser, or by several.
    """

    def __init__(
        self, task: Task, options: Mapping[str, Any], names: Sequence[str] | None = None
    ) -> None:
        found = dict(zip(task.denoisers, task.denoiser_intervals(options), strict=True))
        ordered = sorted(found.values())
        ends = [0.0, *(high for _, high in ordered)]
        if [low for low, _ in ordered] != ends[:-1] or ends[-1] != 1 or len(set(ends)) < len(ends):
            said = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in found.items())
            raise ConfigError(
                f"The denoisers of the task {task.name!r} do not share the noise levels: {said}.",
                fix="Give a boundary between 0 and 1.",
            )
        self.intervals = {name: found[name] for name in names or task.denoisers}

    def at(self, t: float) -> str:
        """The name of the denoiser for noise level `t`, from 0 (clean) to 1. If that one is not
        among `names`, the nearest one.
        """
        for name, (low, high) in self.intervals.items():
            if low <= t < high or (high == 1 and t >= 1):
                return name
        return min(self.intervals, key=lambda name: _distance(t, self.intervals[name]))

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest noise level that a denoiser handles."""
        lows, highs = zip(*self.intervals.values(), strict=True)
        return min(lows), max(highs)


def _distance(t: float, interval: tuple[float, float]) -> float:
    return max(interval[0] - t, t - interval[1], 0.0)
