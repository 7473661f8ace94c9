"""Lion (Chen et al. 2023, arXiv:2302.06675): each step moves by the sign of a momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from musubi.train.optimizers.checks import check_betas, check_rate, in_float32


class Lion(Optimizer):
    """Each number moves up or down by the learning rate, so use a third to a tenth of AdamW's rate.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay rates of the momentum: for the direction of the step, and for the momentum
            itself.
        weight_decay: Decoupled, times the learning rate.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        check_rate(lr, weight_decay)
        check_betas(betas, 2)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make a step."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient, state = p.grad.float(), self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(gradient)
                momentum = state["exp_avg"]
                direction = momentum.lerp(gradient, 1 - first).sign_()
                with in_float32(p) as weight:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(direction, alpha=-group["lr"])
                momentum.lerp_(gradient, 1 - second)
