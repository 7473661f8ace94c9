"""Stochastic rounding: a bfloat16 weight has 8 bits of precision, and would lose small steps."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from musubi.train.seeds import generator

_LOW = 1 << 16  # what bfloat16 leaves out of a float32


class Rounding:
    """Makes the optimizer's step in float32, then rounds each bfloat16 weight up or down at random.

    On average a weight is right, however small the step. Only one parameter at a time is converted
    to float32, so the extra memory is that of the largest parameter.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def step(self, optimizer: Optimizer) -> None:
        """Make a step. The optimizer must not share states between parameters."""
        groups = optimizer.param_groups
        whole = [list(group["params"]) for group in groups]
        try:
            for group in groups:
                group["params"] = []
            for group, params in zip(groups, whole, strict=True):
                group["params"] = [p for p in params if p.dtype != torch.bfloat16]
                if group["params"]:
                    optimizer.step()
                for p in params:
                    if p.dtype == torch.bfloat16 and p.grad is not None:
                        group["params"] = [p]
                        self._widened(optimizer, p)
                group["params"] = []
        finally:
            for group, params in zip(groups, whole, strict=True):
                group["params"] = params

    def state_dict(self) -> dict[str, Any]:
        """The generators' states by device."""
        return {str(device): g.get_state() for device, g in self._generators.items()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Put them back."""
        for device, held in states.items():
            self._generator(torch.device(device)).set_state(held)

    def _widened(self, optimizer: Optimizer, p: torch.Tensor) -> None:
        kept, gradient = p.data, p.grad
        p.grad = None  # a gradient has the dtype of its weight
        p.data = kept.float()
        try:
            p.grad = None if gradient is None else gradient.float()
            optimizer.step()
            kept.copy_(rounded(p.data, self._generator(p.device)))
        finally:
            p.grad = None
            p.data = kept
            p.grad = gradient

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = generator(device, self.seed, "rounding")
        return self._generators[device]


def rounded(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round each value to one of the two nearest bfloat16 values; the nearer one is more likely.

    Args:
        values: Float32.
        generator: Random generator on the device of the values.
    """
    chance = torch.randint(
        0, _LOW, values.shape, generator=generator, device=values.device, dtype=torch.int32
    )
    bits = values.contiguous().view(torch.int32) + chance
    return (bits & -_LOW).view(torch.float32).to(torch.bfloat16)
