"""The functions that a solver calls: the network's prediction, and a callback after each step."""

from __future__ import annotations

from collections.abc import Callable

import torch

Predict = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""`(x, t, index) -> velocity`: x as given to `solve` in float32; t (B,) float64 in [0, 1]."""

Callback = Callable[[int, torch.Tensor], None]
"""`(index, x)` after each step."""

Solver = Callable[
    [Predict, torch.Tensor, torch.Tensor, torch.Tensor, "Callback | None"], torch.Tensor
]


def called(predict: Predict, x: torch.Tensor, timesteps: torch.Tensor, i: int) -> torch.Tensor:
    """The velocity at step `i`, in the dtype of `x`."""
    # float64: 978 / 1000 * 1000 in float32 may miss 978, which the time embedding would see.
    t = torch.full((x.shape[0],), float(timesteps[i]) / 1000, dtype=torch.float64, device=x.device)
    return predict(x, t, i).to(x.dtype)
