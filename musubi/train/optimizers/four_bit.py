"""AdamW with both moments in four bits per number (Li et al. 2023, arXiv:2309.01507).

Each block of 128 numbers shares a scale, its largest absolute value. The mean uses 16 signed levels
that are dense near zero. The mean square uses sixteenths of the scale, without zero, since the step
divides by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from musubi.train.optimizers.checks import check_betas, check_rate, in_float32

BLOCK = 128
SMALLEST = 4096  # numbers in a tensor; smaller ones keep float32, as in 8-bit optimizers
# The 4-bit dynamic exponent of Dettmers et al. 2021 (arXiv:2110.02861).
SIGNED = (
    *(-0.8875, -0.6625, -0.4375, -0.2125, -0.0775, -0.0325, -0.0055, 0.0),
    *(0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875, 1.0),
)
UNSIGNED = tuple(n / 16 for n in range(1, 17))


class AdamW4bit(Optimizer):
    """AdamW with moments in four bits: a byte for each trained number instead of eight.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate, as AdamW's.
        betas: Decay rates of the mean and of the mean square.
        eps: Added to the root of the mean square.
        weight_decay: Decoupled, times the learning rate.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        check_rate(lr, weight_decay)
        check_betas(betas, 2)
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make a step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad.float(), group)

    def _move(self, p: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        state = self.state[p]
        if not state:
            state |= {"steps": 0, "mean": _nothing(gradient), "square": _nothing(gradient)}
        state["steps"] += 1
        mean = _read(state["mean"], SIGNED, gradient).lerp_(gradient, 1 - first)
        square = _read(state["square"], UNSIGNED, gradient)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        state["mean"], state["square"] = (
            _stored(mean, SIGNED),
            _stored(square, UNSIGNED),
        )
        root = (square / (1 - second ** state["steps"])).sqrt_().add_(group["eps"])
        with in_float32(p) as weight:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.addcdiv_(mean, root, value=-group["lr"] / (1 - first ** state["steps"]))


def quantize(values: torch.Tensor, levels: tuple[float, ...]) -> dict[str, torch.Tensor]:
    """Quantize to four bits per number, two numbers in a byte, and one scale per block.

    Args:
        values: Float32 of any shape.
        levels: 16 levels, in rising order; the last is 1.

    Returns:
        "codes": bytes, half as many as numbers in whole blocks; "scales": one for each block.
    """
    flat = values.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    table = torch.tensor(levels, device=flat.device)
    middles = (table[1:] + table[:-1]) / 2
    normed = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    codes = torch.bucketize(normed, middles, out_int32=True, right=True).to(torch.uint8).flatten()
    return {"codes": codes[::2] * 16 + codes[1::2], "scales": scales}


def dequantize(
    stored: dict[str, torch.Tensor], levels: tuple[float, ...], shape: torch.Size
) -> torch.Tensor:
    """Undo `quantize`: the numbers in float32.

    Args:
        stored: What `quantize` returned.
        levels: The levels that were given to `quantize`.
        shape: Shape of the result.
    """
    codes = stored["codes"]
    table = torch.tensor(levels, device=codes.device)
    both = torch.stack([codes // 16, codes % 16], dim=1).view(-1, BLOCK)
    values = table[both.long()] * stored["scales"].unsqueeze(1)
    return values.flatten()[: shape.numel()].view(shape)


def _nothing(gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    zeros = torch.zeros_like(gradient)
    return {"whole": zeros} if zeros.numel() < SMALLEST else quantize(zeros, SIGNED)


def _read(
    stored: dict[str, torch.Tensor], levels: tuple[float, ...], gradient: torch.Tensor
) -> torch.Tensor:
    if "whole" in stored:
        return stored["whole"].clone()
    return dequantize(stored, levels, gradient.shape)


def _stored(values: torch.Tensor, levels: tuple[float, ...]) -> dict[str, torch.Tensor]:
    return {"whole": values} if values.numel() < SMALLEST else quantize(values, levels)
