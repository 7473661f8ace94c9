"""The exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from musubi.train.trainable import Trainable

ENDING = "_ema"
"""Added to the file name of a checkpoint of the average."""


class Average:
    """The exponential moving average of the trained weights, in float32.

    Args:
        trainable: The weights to average.
        decay: The share of the old average that each step keeps. It is lower in the first steps, so
            that the initial weights are soon forgotten.
        device: The device that holds the average; None: the device of the weights.
    """

    def __init__(
        self, trainable: Trainable, decay: float, device: torch.device | None = None
    ) -> None:
        self.trainable = trainable
        self.decay = decay
        self.steps = 0
        self.weights = {
            name: torch.empty_like(t, dtype=torch.float32, device=device or t.device).copy_(t)
            for name, t in trainable.tensors().items()
            if t.is_floating_point()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights to the average; called after each step."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        now = self.trainable.tensors()
        for name, mean in self.weights.items():
            mean.lerp_(now[name].to(mean.device, torch.float32), share)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside this context, the network has the averaged weights."""
        now = self.trainable.tensors()
        kept = {name: now[name].clone() for name in self.weights}
        self.trainable.load(self.weights)
        try:
            yield
        finally:
            self.trainable.load(kept)

    def state_dict(self) -> dict[str, Any]:
        """The state for a resumed run."""
        return {"steps": self.steps, "weights": {n: t.cpu() for n, t in self.weights.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state.

        Raises:
            ValueError: The state is of other weights.
        """
        given = state["weights"]
        if given.keys() != self.weights.keys():
            raise ValueError("its average is of other weights")
        for name, mean in self.weights.items():
            if given[name].shape != mean.shape:
                raise ValueError(
                    f"its average has {name!r} of the shape {tuple(given[name].shape)}"
                )
            mean.copy_(given[name])
        self.steps = int(state["steps"])
