"""CAME (Luo et al. 2023, arXiv:2307.02047): as little memory as Adafactor, and smaller steps where
updates are unstable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from musubi.train.optimizers.checks import check_betas, check_rate, in_float32


class CAME(Optimizer):
    """Keeps row and column means of the squared gradient, and of the squared instability of the
    update.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay rates of the averages of the update, the squared gradient, and the instability.
        eps: Added to the squared gradient, and to the squared instability.
        clip_threshold: Updates are scaled down to this root mean square.
        weight_decay: Decoupled, times the learning rate.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        check_rate(lr, weight_decay)
        check_betas(betas, 3)
        if not clip_threshold > 0:
            raise ValueError(f"clip_threshold is {clip_threshold}, and must be more than 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(betas),
                "eps": tuple(eps),
                "clip_threshold": clip_threshold,
                "weight_decay": weight_decay,
            },
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make a step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad.float(), group)

    def _move(self, p: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        first, second, third = group["betas"]
        state = self.state[p]
        if not state:
            state["exp_avg"] = torch.zeros_like(gradient)
            state["square"] = _moments(gradient)
            if gradient.ndim >= 2:
                state["instability"] = _moments(gradient)
        update = _scaled(gradient, state["square"], gradient.square() + group["eps"][0], second)
        rms = update.norm() / update.numel() ** 0.5
        update.div_((rms / group["clip_threshold"]).clamp_(min=1.0))
        average = state["exp_avg"]
        average.mul_(first).add_(update, alpha=1 - first)
        if gradient.ndim >= 2:
            wavering = (update - average).square_().add_(group["eps"][1])
            update = _scaled(average, state["instability"], wavering, third)
        else:
            update = average
        with in_float32(p) as weight:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update, alpha=-group["lr"])


def _moments(gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """Means over rows and over columns of the last two axes; a vector is kept as it is."""
    if gradient.ndim < 2:
        return {"whole": torch.zeros_like(gradient)}
    rows, columns = gradient.shape[:-1], gradient.shape[:-2] + gradient.shape[-1:]
    return {"rows": gradient.new_zeros(rows), "columns": gradient.new_zeros(columns)}


def _scaled(
    value: torch.Tensor, moments: dict[str, torch.Tensor], square: torch.Tensor, beta: float
) -> torch.Tensor:
    """Update the moments with the new squares, then divide the value by their root."""
    if "whole" in moments:
        whole = moments["whole"].mul_(beta).add_(square, alpha=1 - beta)
        return whole.rsqrt().mul_(value)
    rows = moments["rows"].mul_(beta).add_(square.mean(dim=-1), alpha=1 - beta)
    columns = moments["columns"].mul_(beta).add_(square.mean(dim=-2), alpha=1 - beta)
    of_rows = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    return (of_rows * columns.unsqueeze(-2).rsqrt()).mul_(value)
