"""Muon for matrices (Jordan et al. 2024), AdamW for everything else.

Newton-Schulz steps make the momentum of a matrix nearly orthogonal, so that all directions of a
layer move by the same amount. https://kellerjordan.github.io/posts/muon/ ; steps of AdamW's size by
Liu et al. 2025 (arXiv:2502.16982). With Python and torch of any supported version: torch.optim has
one from 2.9, for matrices alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from musubi.train.optimizers.checks import check_betas, check_rate, in_float32

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, chosen for a steep start


class Muon(Optimizer):
    """Muon for tensors of two axes and more, AdamW for vectors.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate, of AdamW's size for both kinds.
        weight_decay: Decoupled, times the learning rate.
        momentum: Decay rate of the momentum.
        nesterov: Use Nesterov momentum.
        ns_steps: Newton-Schulz steps.
        adjust_lr_fn: "match_rms_adamw", by which a rate means what AdamW's means, or "original", by
            which rates are near 0.02.
        betas: Of AdamW.
        eps: Of AdamW.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(  # noqa: PLR0913 - its paper's numbers and AdamW's
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        check_rate(lr, weight_decay)
        check_betas(betas, 2)
        check_betas((momentum,), 1)
        if adjust_lr_fn not in ("match_rms_adamw", "original"):
            raise ValueError(f"adjust_lr_fn is {adjust_lr_fn!r}, not match_rms_adamw or original")
        if not 1 <= ns_steps < 100:
            raise ValueError(f"ns_steps is {ns_steps}, and must be from 1 to 99")
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "ns_steps": ns_steps,
                "adjust_lr_fn": adjust_lr_fn,
                "betas": tuple(betas),
                "eps": eps,
            },
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make a step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient = p.grad.float()
                update = self._turned(p, gradient, group)
                with in_float32(p) as weight:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(update)

    def _turned(
        self, p: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]
    ) -> torch.Tensor:
        """The update that is subtracted from the weight."""
        state = self.state[p]
        if p.ndim < 2:
            return _adam(state, gradient, group)
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        matrix = update.flatten(1)
        height, width = matrix.shape
        if group["adjust_lr_fn"] == "original":
            factor = math.sqrt(max(1.0, height / width))
        else:
            factor = 0.2 * math.sqrt(max(height, width))
        turned = orthogonal(matrix, group["ns_steps"]).view_as(p)
        return turned.float() * (group["lr"] * factor)


def orthogonal(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """A matrix of the same singular vectors whose singular values are near 1, in bfloat16.

    Args:
        matrix: Any.
        steps: Newton-Schulz steps.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _adam(state: dict[str, Any], gradient: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    if not state:
        state |= {"steps": 0, "exp_avg": torch.zeros_like(gradient)}
        state["exp_avg_sq"] = torch.zeros_like(gradient)
    first, second = group["betas"]
    state["steps"] += 1
    mean = state["exp_avg"].lerp_(gradient, 1 - first)
    square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    root = (square / (1 - second ** state["steps"])).sqrt_().add_(group["eps"])
    return mean / root * (group["lr"] / (1 - first ** state["steps"]))
