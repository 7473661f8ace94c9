"""UniPC for a flow without an alpha: another multistep solver than `solvers.unipc`.

It integrates the prediction of the clean sample over lambda = -ln sigma, with B(h) = h and up to
order 3 (Zhao et al. 2023, arXiv:2302.04867). The network is called once at each level above 0, and
what it last predicts as the clean sample is the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from musubi.flow.predictions import Callback, Predict, called

ORDER = 3


def unipc_flow(
    predict: Predict,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    timesteps: torch.Tensor,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Step `i` is of order min(i, 3, steps - 1); with one step the result is the first prediction."""
    levels = sigmas.tolist()[:-1]
    order = min(ORDER, len(levels) - 1)
    history: list[tuple[float, torch.Tensor]] = []  # (level, clean), the latest last
    for i, level in enumerate(levels):
        if history:
            x, clean = _step(predict, x, history, level, timesteps, i, min(i, order))
        else:
            clean = x - level * called(predict, x, timesteps, i)
        history = [*history, (level, clean)][-max(order, 1) :]
        if callback is not None:
            callback(i, clean)
    return history[-1][1]


def _step(
    predict: Predict,
    x: torch.Tensor,
    history: Sequence[tuple[float, torch.Tensor]],
    level: float,
    timesteps: torch.Tensor,
    i: int,
    order: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict x at `level`, ask the network there, and correct x by its answer: (x, clean)."""
    before, clean = history[-1]
    h = math.log(before / level)
    ratios = [math.log(before / history[-k - 1][0]) / h for k in range(1, order)]
    slopes = [
        (history[-k - 1][1] - clean) / ratio
        for k, ratio in zip(range(1, order), ratios, strict=True)
    ]
    weights = _weights([*ratios, 1.0], h)
    # Two unknown weights of a second-order predictor are taken as one half, as its authors do.
    ahead = [0.5] if order == 2 else _weights(ratios, h)
    first = x * (level / before) - clean * math.expm1(-h)
    guess = first + h * _summed(ahead, slopes, x)
    answer = guess - level * called(predict, guess, timesteps, i)
    if order == 1:
        weights = [0.5]
    change = _summed(weights[:-1], slopes, x) + weights[-1] * (answer - clean)
    return first + h * change, answer


def _weights(ratios: Sequence[float], h: float) -> list[float]:
    """Weights w with sum(w r^(k-1)) = k! phi_(k+1)(-h) / -h, k = 1 … len(ratios)."""
    if not ratios:
        return []
    phi = math.expm1(-h) / -h - 1
    factorial = 1
    right: list[float] = []
    for k in range(1, len(ratios) + 1):
        right.append(phi * factorial / -h)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    rows = torch.tensor([[r**k for r in ratios] for k in range(len(ratios))], dtype=torch.float64)
    found = torch.linalg.solve(rows, torch.tensor(right, dtype=torch.float64))
    return [float(w) for w in found.tolist()]


def _summed(
    weights: Sequence[float], slopes: Sequence[torch.Tensor], like: torch.Tensor
) -> torch.Tensor:
    total = torch.zeros_like(like)
    for weight, slope in zip(weights, slopes, strict=True):
        total = total + weight * slope
    return total
