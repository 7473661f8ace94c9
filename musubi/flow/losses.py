"""How far a prediction is from its target, and how much a noise level counts: pure functions."""

from __future__ import annotations

from typing import Literal

import torch

LossType = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]


def distance(error: torch.Tensor, kind: LossType, c: torch.Tensor | None = None) -> torch.Tensor:
    """The loss of each number of an error, float32, shaped like the error.

    "huber" and "smooth_l1" are pseudo-Huber losses: squares near 0, straight lines far from it
    (Charbonnier et al. 1997). "huber" is 2c (sqrt(e^2 + c^2) - c), which is e^2 for a large c;
    "smooth_l1" is the same over c, which is 2|e| for a small one.

    Args:
        error: Prediction minus target.
        kind: Which distance.
        c: Where the square becomes a line; broadcasts to the error.

    >>> distance(torch.tensor([3.0]), "huber", torch.tensor([4.0])).tolist()
    [8.0]
    """
    error = error.float()
    if kind == "l2":
        return error.square()
    if kind == "l1":
        return error.abs()
    assert c is not None
    square = error.square()
    line = square / ((square + c.square()).sqrt() + c)  # the difference of two would cancel
    return 2 * c * line if kind == "huber" else 2 * line


def huber_c(
    schedule: HuberSchedule, t: torch.Tensor, *, c: float, scale: float = 1.0
) -> torch.Tensor:
    """Where the square becomes a line at each noise level, float32, shaped like `t`.

    "exponential" falls from 1 at no noise to `c` at t = 1, as c^t. "snr" does by the ratio of noise
    to signal, t / (1 - t) here: (1 - c) / (1 + ratio)^2 + c = (1 - c) (1 - t)^2 + c.

    Args:
        schedule: How it depends on the noise level.
        t: Noise levels, 0 to 1.
        c: The smallest value.
        scale: A factor for all values.
    """
    t = t.float()
    if schedule == "exponential":
        found = c**t
    elif schedule == "snr":
        found = (1 - c) * (1 - t).square() + c
    else:
        found = torch.full_like(t, c)
    return found * scale


def min_snr_weight(t: torch.Tensor, gamma: float) -> torch.Tensor:
    """The weight of min-SNR (Hang et al. 2023) for a squared error of velocities, shaped like `t`.

    The paper weights the error of the clean sample by min(SNR, gamma). Here SNR is (1 - t)^2 / t^2, and
    the clean sample that a velocity means is x_t - t v, so its error is t^2 times that of the velocity:
    the weight is min((1 - t)^2, gamma t^2).

    >>> [round(w, 4) for w in min_snr_weight(torch.tensor([0.1, 0.5, 1.0]), 5.0).tolist()]
    [0.05, 0.25, 0.0]
    """
    t = t.float()
    return torch.minimum((1 - t).square(), gamma * t.square())
