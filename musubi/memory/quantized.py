"""Weights in 8 bits with a float32 scale for each row, expanded for a product or multiplied as they are.

Layers keep their names and stay `nn.Linear`; their weight (out, in) is e4m3 or int8, and a buffer
`scale_weight` (out, 1) lies beside it. In e4m3 (Micikevicius et al., https://arxiv.org/abs/2209.05433)
steps grow with the number; in int8 they are equal, and a row without outliers loses a third as much.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from musubi.memory import fp8, int8
from musubi.plugin.policy import Storage
from musubi.plugin.traits import Traits, named

SCALE = "scale_weight"
DTYPES: dict[Storage, torch.dtype] = {
    "fp8": fp8.E4M3,
    "fp8_scaled": fp8.E4M3,
    "int8": torch.int8,
}
"""What the matrices are stored in."""
# What the tensor units want of the inner and outer length of a product in 8 bits.
_MULTIPLE = 16


class Linear8(nn.Linear):
    """A frozen linear layer stored in 8 bits.

    Attributes:
        quantized_matmul: Multiply in 8 bits, the input scaled for each token; else the weight is expanded
            to the compute dtype for each product. Both are exact in the scales, and round the
            weight alike; multiplying rounds the input, and the gradient, to 8 bits as well.
    """

    quantized_matmul: bool
    scale_weight: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out), in the dtype that autocast or the input has."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        if self.quantized_matmul:
            return _Multiplied.apply(input.to(dtype), self.weight, self.scale_weight, bias)
        return _Expanded.apply(input.to(dtype), self.weight, self.scale_weight, bias)


def convert(
    module: nn.Module, traits: Traits, *, quantized_matmul: bool, storage: Storage = "fp8_scaled"
) -> list[str]:
    """Make 8-bit layers of those linear layers that `traits.quantize` names; values are not set.

    Args:
        module: The network, on any device; mostly the meta device, before it is loaded.
        traits: Its traits.
        quantized_matmul: As `Linear8.quantized_matmul`, where a layer's sizes allow it.
        storage: Decides the dtype; not "native".

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
            layer.quantized_matmul = quantized_matmul and not any(n % _MULTIPLE for n in sizes)
            weight = layer.weight
            empty = torch.empty_like(weight, dtype=DTYPES[storage])
            layer.weight = nn.Parameter(empty, requires_grad=False)
            layer.register_buffer(SCALE, torch.ones(weight.shape[0], 1, device=weight.device))
            names.append(f"{path}.weight")
    return names


def _turned(layer: nn.Linear) -> Linear8:
    layer.__class__ = Linear8
    return cast(Linear8, layer)


def quantized(
    weight: torch.Tensor, storage: Storage = "fp8_scaled"
) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix (out, in) in 8 bits, and the float32 scale (out, 1) that each row is multiplied by.

    Args:
        weight: Any floating-point dtype.
        storage: "fp8_scaled" and "int8" scale each row so that its largest number is the largest
            there is; "fp8" scales nothing, and cuts off what is beyond 448.
    """
    if storage == "int8":
        return int8.rows(weight)
    return fp8.rows(weight, scaled=storage == "fp8_scaled")


def expanded(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The matrix in `dtype`: rounded once."""
    return (weight.to(torch.float32) * scale).to(dtype)


def multiplies(device: torch.device, storage: Storage) -> bool:
    """Whether the device multiplies matrices that are stored so, with a scale for each row."""
    return int8.multiplies(device) if storage == "int8" else fp8.multiplies(device)


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
    """Products in 8 bits, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        kind = int8 if weight.dtype is torch.int8 else fp8
        rows, row_scale = kind.rows(x.flatten(0, -2))
        y = kind.product(rows, weight, row_scale, scale, bias, x.dtype)
        return y.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        weight, scale = ctx.saved_tensors
        kind = int8 if weight.dtype is torch.int8 else fp8
        # The scales of the rows belong to the length that is summed over here: they go into the
        # gradient, which is then scaled by token. So the weight is not rounded a second time.
        rows, row_scale = kind.rows(gradient.flatten(0, -2), factor=scale.flatten())
        # The units read the second matrix along the summed length: a copy in 8 bits, turned.
        turned = kind.turned(weight)
        ones = torch.ones_like(row_scale[:1]).expand(len(turned), 1).contiguous()
        y = kind.product(rows, turned, row_scale, ones, None, gradient.dtype)
        return y.unflatten(0, gradient.shape[:-1]), None, None, None
