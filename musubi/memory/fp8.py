"""Weights in 8 bits: e4m3 with a float32 scale for each row, expanded for a product or multiplied as they are.

Layers keep their names and stay `nn.Linear`; their weight is e4m3 (out, in), and a buffer
`scale_weight` (out, 1) lies beside it. Micikevicius et al., https://arxiv.org/abs/2209.05433.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from musubi.plugin.traits import Traits, named

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
SCALE = "scale_weight"
# What the tensor units want of the inner and outer length of a product in 8 bits.
_MULTIPLE = 16
_SMALLEST_SCALE = 1e-12


class Linear8(nn.Linear):
    """A frozen linear layer stored in 8 bits.

    Attributes:
        products: Multiply in 8 bits, the input scaled for each token; else the weight is expanded
            to the compute dtype for each product. Both are exact in the scales, and round the
            weight alike; products round the input, and the gradient, to 8 bits as well.
    """

    products: bool
    scale_weight: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out), in the dtype that autocast or the input has."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        product = _Multiplied if self.products else _Expanded
        return product.apply(input.to(dtype), self.weight, self.scale_weight, bias)


def convert(module: nn.Module, traits: Traits, *, products: bool) -> list[str]:
    """Make 8-bit layers of those linear layers that `traits.quantize` names; values are not set.

    Args:
        module: The network, on any device; mostly the meta device, before it is loaded.
        traits: Its traits.
        products: As `Linear8.products`, where a layer's sizes allow it.

    Returns:
        The names of the weights.
    """
    names = []
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and named(f"{path}.weight", traits.quantize):
            if type(layer) is not nn.Linear and not isinstance(layer, Linear8):
                continue  # it computes in a way of its own
            layer = _turned(layer)
            sizes = (layer.in_features, layer.out_features)
            layer.products = products and not any(n % _MULTIPLE for n in sizes)
            weight = layer.weight
            empty = torch.empty_like(weight, dtype=E4M3)
            layer.weight = nn.Parameter(empty, requires_grad=False)
            layer.register_buffer(SCALE, torch.ones(weight.shape[0], 1, device=weight.device))
            names.append(f"{path}.weight")
    return names


def _turned(layer: nn.Linear) -> Linear8:
    layer.__class__ = Linear8
    return cast(Linear8, layer)


def quantized(weight: torch.Tensor, *, scaled: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix (out, in) in e4m3, and the float32 scale (out, 1) that each row is multiplied by.

    Args:
        weight: Any floating-point dtype.
        scaled: Scale each row so that its largest number is 448; else all scales are one, and
            numbers beyond 448 are cut off.
    """
    rows = weight.float()
    if not scaled:
        return rows.clamp(-LARGEST, LARGEST).to(E4M3), torch.ones_like(rows[:, :1])
    scale = rows.abs().amax(1, keepdim=True).clamp(min=_SMALLEST_SCALE) / LARGEST
    return (rows / scale).to(E4M3), scale


def expanded(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The matrix in `dtype`: rounded once."""
    return (weight.to(torch.float32) * scale).to(dtype)


def multiplies(device: torch.device) -> bool:
    """Whether the device multiplies matrices in 8 bits with a scale for each row."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    a = torch.ones(16, 32, device=device).to(E4M3)
    ones = torch.ones(16, 1, device=device)
    try:
        _product8(a, a.t(), ones, ones.t(), None, torch.bfloat16)
    except RuntimeError:
        return False
    return True


class _Expanded(torch.autograd.Function):
    """Keeps the 8-bit weight for the backward pass, not the expanded one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, expanded(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        weight, scale = ctx.saved_tensors
        return gradient @ expanded(weight, scale, gradient.dtype), None, None, None


class _Multiplied(torch.autograd.Function):
    """Products in 8 bits, forward and backward; sums are float32 in the tensor units."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        rows, row_scale = quantized(x.flatten(0, -2))
        y = _product8(rows, weight.t(), row_scale, scale.t(), bias, x.dtype)
        return y.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        weight, scale = ctx.saved_tensors
        # The scales of the rows belong to the length that is summed over here: they go into the
        # gradient, which is then scaled by token.
        rows, row_scale = quantized(gradient.flatten(0, -2).float() * scale.t())
        ones = torch.ones_like(row_scale[:1]).expand(1, weight.shape[1])
        # The units read the second matrix along the summed length: a copy in 8 bits, turned.
        turned = weight.t().contiguous().t()
        y = _product8(rows, turned, row_scale, ones.contiguous(), None, gradient.dtype)
        return y.unflatten(0, gradient.shape[:-1]), None, None, None


def _product8(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(M, K) by (K, N), `b` stored along K; scales (M, 1) and (1, N)."""
    if not a.is_cuda:  # the same numbers without the units
        y = (a.float() * scale_a) @ (b.float() * scale_b)
        return (y if bias is None else y + bias).to(dtype)
    half = torch.bfloat16  # the only dtype the units give with scales by row
    y = torch._scaled_mm(  # type: ignore[attr-defined]
        a,
        b,
        scale_a=scale_a,
        scale_b=scale_b,
        bias=None if bias is None else bias.to(half),
        out_dtype=half,
        use_fast_accum=True,
    )
    return y.to(dtype)
