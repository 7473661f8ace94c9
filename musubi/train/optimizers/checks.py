"""Shared by the optimizers of this folder: checks of arguments, and weights in float32 during a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


def check_rate(lr: float, weight_decay: float) -> None:
    """Refuse a rate or a decay below 0.

    Raises:
        ValueError: Naming the number.
    """
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise ValueError(f"{name} is {value}, and must be 0 or more")


def check_betas(betas: Sequence[float], count: int) -> None:
    """Refuse betas that are not `count` numbers from 0 to below 1.

    Raises:
        ValueError: Naming them.
    """
    if len(betas) != count or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are {tuple(betas)}, and must be {count} numbers from 0 to below 1")


@contextmanager
def in_float32(p: torch.Tensor) -> Iterator[torch.Tensor]:
    """Inside this context, the weight in float32: itself, or a copy that is rounded once at the end."""
    if p.dtype == torch.float32:
        yield p
        return
    weight = p.float()
    yield weight
    p.copy_(weight)
