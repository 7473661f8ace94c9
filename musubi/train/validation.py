"""The validation loss on held-back items, with fixed noise and evenly spaced noise levels, so that
runs can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from musubi import stopping
from musubi.pages import columns
from musubi.plugin.report import Report
from musubi.train.step import FlowMatchingLoss

Reduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Validation:
    """Measures the loss on held-back items.

    Args:
        objective: The loss.
        items: Indices of the items.
        keys: The key of each item; it decides the item's noise.
        load: A function from indices to a batch.
        levels: How many noise levels each item is measured at.
        span: Lowest and highest noise level, 0 to 1.
        rank: Of this process.
        world: Number of processes; they share the items.
        total: Sums a tensor over the processes.
    """

    objective: FlowMatchingLoss
    items: Sequence[int]
    keys: Mapping[int, str]
    load: Callable[[Sequence[int]], Mapping[str, Any]]
    levels: int
    span: tuple[float, float]
    rank: int = 0
    world: int = 1
    total: Reduce = lambda tensor: tensor

    def times(self) -> list[float]:
        """The middles of equal parts of the span."""
        low, high = self.span
        return [low + (high - low) * (j + 0.5) / self.levels for j in range(self.levels)]

    def measure(self, report: Report) -> dict[str, float]:
        """The mean loss, and the standard error of the items' means.

        The network must be in evaluation mode.
        """
        times = self.times()
        device = self.objective.device
        means = torch.zeros(len(self.items), dtype=torch.float64, device=device)
        mine = range(self.rank, len(self.items), self.world)
        with report.progress("validation", len(mine), unit="item") as bar:
            for place in mine:
                if self.world == 1:  # several processes must end at the same item
                    stopping.check()
                index = self.items[place]
                batch = self.load([index])
                losses = [
                    self.objective.losses_at(batch, t, self.keys[index], j).mean()
                    for j, t in enumerate(times)
                ]
                means[place] = torch.stack(losses).double().mean()
                bar.advance()
        values = self.total(means).tolist()
        n = len(values)
        mean = math.fsum(values) / n
        spread = math.fsum((v - mean) ** 2 for v in values) / max(1, n - 1)
        return {
            columns.VALIDATION.key: mean,
            columns.VALIDATION_ERROR.key: math.sqrt(spread / n),
        }
