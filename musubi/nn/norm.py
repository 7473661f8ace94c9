"""Norms and gates that compute in float32 whatever they are given and stored in, and return what came.

Where blocks are compiled, a chain of operations is one kernel. Where they are not, each operation
reads and writes all tokens: for what comes in 16 bits there are ways here that take fewer of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from musubi.nn.fusing import fusing

_HALVES = (torch.bfloat16, torch.float16)


class RMSNorm(nn.Module):
    """Root mean square over the last axis, with a weight (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self._exact: tuple[torch.dtype, ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (…, dim); the dtype of `x` is kept."""
        weight = self.weight
        fused = hasattr(torch.ops.aten, "_fused_rms_norm")  # torch 2.9
        if fused and x.dtype in self._exact and _alone(x, weight):
            with _as_given(x):
                return F.rms_norm(x, weight.shape, weight.to(x.dtype), self.eps)
        return F.rms_norm(x.float(), weight.shape, weight.float(), self.eps).to(x.dtype)

    def placed(self) -> None:
        """Look at the weight, which is in place: what it fits needs no copy in float32."""
        self._exact = _fitting(self.weight)


class LayerNorm(nn.LayerNorm):
    """Layer norm with weight and bias; the dtype of what comes in is kept."""

    _exact: tuple[torch.dtype, ...] = ()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (…, dim)."""
        weight, bias, shape = self.weight, self.bias, self.normalized_shape
        if input.dtype in self._exact and _alone(input, weight):
            with _as_given(input):
                weight, bias = weight.to(input.dtype), bias.to(input.dtype)
                return F.layer_norm(input, shape, weight, bias, self.eps)
        y = F.layer_norm(input.float(), shape, weight.float(), bias.float(), self.eps)
        return y.to(input.dtype)

    def placed(self) -> None:
        """Look at weight and bias, which are in place: what they fit needs no copy in float32."""
        self._exact = tuple(d for d in _fitting(self.weight) if d in _fitting(self.bias))


def modulated(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    eps: float = 1e-6,
    *,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Layer norm without weights, then `* (1 + scale) + shift`, in float32.

    Args:
        x: (B, L, D) of any dtype.
        shift: (B, 1, D), float32.
        scale: (B, 1, D), float32.
        eps: Added to the variance.
        dtype: Of the result, rounded once.
    """
    few = x.dtype in _HALVES and dtype is x.dtype and len(x) == 1 and not fusing()
    if few and not (shift.requires_grad or scale.requires_grad):
        return _Modulated.apply(x, shift.flatten().float(), (1 + scale).flatten().float(), eps)
    return (F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift).to(dtype)


def gated(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """`x + y * gate` in float32, rounded once to the dtype of `x`.

    Args:
        x: (B, L, D).
        y: (B, L, D).
        gate: (B, 1, D), float32.
    """
    if x.dtype in _HALVES and y.dtype is x.dtype and not gate.requires_grad and not fusing():
        return _Gated.apply(x, y, gate)
    return torch.addcmul(x.float(), y.float(), gate).to(x.dtype)


def _alone(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a norm is a kernel of its own that computes in float32: processors round in between."""
    return x.is_cuda and not weight.requires_grad and not fusing()


def _fitting(weight: torch.Tensor) -> tuple[torch.dtype, ...]:
    try:
        return tuple(d for d in _HALVES if bool((weight.to(d).float() == weight.float()).all()))
    except RuntimeError:  # of shapes only, without numbers
        return _HALVES


def _as_given(x: torch.Tensor) -> Any:
    # Autocast would make float32 of what a norm is given.
    return torch.autocast(x.device.type, enabled=False)


class _Modulated(torch.autograd.Function):
    """One item: shift and scale are the layer norm's own weight and bias. Kept are tokens in 16 bits."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float
    ) -> torch.Tensor:
        with _as_given(x):
            y, mean, deviation = torch.native_layer_norm(x.float(), shift.shape, scale, shift, eps)
        ctx.save_for_backward(x, shift, scale, mean, deviation)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        x, shift, scale, mean, deviation = ctx.saved_tensors
        found, _, _ = torch.ops.aten.native_layer_norm_backward(
            gradient.float(),
            x.float(),
            shift.shape,
            mean,
            deviation,
            scale,
            shift,
            [True, False, False],
        )
        return found.to(x.dtype), None, None, None


class _Gated(torch.autograd.Function):
    """Kernels that widen what they read, and round what they write."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate)
        return torch.addcmul(x, y, gate, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        (gate,) = ctx.saved_tensors
        return gradient, torch.mul(gradient, gate, out=torch.empty_like(gradient)), None
