"""What an adapter adds to the output of its layer, without building the new weight where that is cheaper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from musubi.lora.delta import Delta, Difference, Pair
from musubi.lora.kinds import Decomposed, Hada, InputRotation, Kron, Rotation, norms
from musubi.memory.quantized import SCALE, expanded

_ROWS = 4096  # of a weight whose norms are taken at once
_CONVOLUTIONS: dict[int, Callable[..., torch.Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@dataclass
class Drops:
    """Dropout while training.

    Args:
        dropout: Dropout of single numbers: between the matrices of a pair, or of the change for
            other kinds.
        rank: Dropout of whole ranks of a pair, or of whole rows of the change, for each item of the
            batch.
        module: Dropout of the whole adapter, for each call.
    """

    dropout: float = 0.0
    rank: float = 0.0
    module: float = 0.0


NONE = Drops()


def added(
    delta: Delta,
    layer: nn.Module,
    x: torch.Tensor,
    output: torch.Tensor,
    strength: float,
    drops: Drops = NONE,
) -> torch.Tensor:
    """The change of a layer's output.

    Args:
        delta: Change of the layer's weight.
        layer: Linear or a convolution.
        x: Its input.
        output: What it gave.
        strength: A factor of the whole change.
        drops: What is left out.
    """
    pair = isinstance(delta, Pair)
    if pair:
        change = _pair(cast(Pair, delta), layer, x, strength, drops)
    elif isinstance(delta, Decomposed):
        change = _decomposed(delta, layer, x, output, strength, drops)
    elif isinstance(delta, Rotation):
        plain = _last(layer, _without_bias(layer, output))
        change = _back(layer, delta.moved_rows(plain)) * strength
    elif isinstance(layer, nn.Linear) and isinstance(delta, Hada) and delta.t1 is None:
        w1_a = delta.w1_a * (delta.scale * strength)
        change = cast(torch.Tensor, _HadaLinear.apply(x, w1_a, delta.w1_b, delta.w2_a, delta.w2_b))
    elif isinstance(layer, nn.Linear) and isinstance(delta, Kron):
        change = _kron(delta, x, strength)
    elif isinstance(layer, nn.Linear) and isinstance(delta, InputRotation):
        moved = delta.moved_inputs(x)
        change = _without_bias(layer, type(layer).forward(layer, moved)) * strength
    else:
        weight = layer.weight if delta.linear else weight_of(layer)
        matrix = delta.change(cast(torch.Tensor, weight)) * strength
        change = _applied(layer, x, matrix.to(x.dtype))
    if not pair and not isinstance(delta, Decomposed):
        change = _dropped(change, layer, drops)
    if drops.module:
        # A factor, not a branch: it can be compiled, and a recomputed block draws the same.
        change = change * (torch.rand((), device=x.device) >= drops.module)
    return change


def summed(
    pair: Pair, x: torch.Tensor, output: torch.Tensor, strength: float, drops: Drops = NONE
) -> torch.Tensor:
    """A linear layer's output with the change of a pair, summed by the product that makes the change.

    For what is compiled: of a sum of two tensors a compiler keeps both for the backward pass.
    """
    hidden, up = _halfway(pair, F.linear(x, pair.down.flatten(1).to(x.dtype)), strength, drops)
    if hidden.dtype != output.dtype:
        return output + F.linear(hidden, up)
    whole = output.flatten(0, -2).unsqueeze(0)
    made = torch.baddbmm(whole, hidden.flatten(0, -2).unsqueeze(0), up.t().unsqueeze(0))
    return made.view(output.shape)


def weight_of(
    layer: nn.Module, homes: Mapping[tuple[int, str], torch.Tensor] | None = None
) -> torch.Tensor:
    """The weight of a layer as it multiplies: expanded when it is stored in 8 bits.

    Args:
        layer: Linear or a convolution.
        homes: Where the tensors are of layers that are away; see `musubi.memory.apply.at_home`.
    """

    def found(leaf: str) -> torch.Tensor | None:
        here = getattr(layer, leaf, None)
        return here if homes is None else homes.get((id(layer), leaf), here)

    weight, scale = cast(torch.Tensor, found("weight")), found(SCALE)
    return weight if scale is None else expanded(weight, scale, torch.float32)


@torch.no_grad()
def norms_of(
    weight: torch.Tensor, inner: Delta | None = None, *, by_column: bool = False
) -> torch.Tensor:
    """`norms` of a weight, with a change added when there is one, of some rows at a time.

    Args:
        weight: (outputs, inputs) or a kernel.
        inner: What is added.
        by_column: Whether there is one for each column; then all rows are taken at once.
    """
    if by_column or (inner is not None and inner.rows(0, 1) is None):
        new = weight.float()
        new = new if inner is None else new + inner.change(weight)
        return norms(new, by_column=by_column)
    found = []
    for start in range(0, weight.shape[0], _ROWS):
        rows = weight[start : start + _ROWS].float()
        part = None if inner is None else inner.rows(start, start + rows.shape[0])
        found.append(norms(rows if part is None else rows + part.change(rows)))
    return torch.cat(found)


def _pair(
    pair: Pair, layer: nn.Module, x: torch.Tensor, strength: float, drops: Drops
) -> torch.Tensor:
    linear = isinstance(layer, nn.Linear)
    dense = pair.down.ndim == 2 or getattr(layer, "groups", 1) != 1
    if not linear and dense and pair.mid is None:
        return _applied(layer, x, (pair.change(cast(Any, layer).weight) * strength).to(x.dtype))
    if linear:
        hidden = F.linear(x, pair.down.flatten(1).to(x.dtype))
    elif pair.mid is None:
        hidden = _applied(layer, x, pair.down.to(x.dtype))
    else:
        hidden = _pointwise(x, pair.down)
        hidden = _applied(layer, hidden, pair.mid.to(x.dtype))
    hidden, up = _halfway(pair, hidden, strength, drops, axis=-1 if linear else 1)
    return F.linear(hidden, up) if linear else _pointwise(hidden, up)


def _halfway(
    pair: Pair, hidden: torch.Tensor, strength: float, drops: Drops, *, axis: int = -1
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is between the matrices, and the second one, which has the scale.

    On the change it would cost the backward pass another tensor.
    """
    scale = pair.scale * strength
    if drops.dropout:
        hidden = F.dropout(hidden, drops.dropout)
    if drops.rank:
        shape = [hidden.shape[0], *[1] * (hidden.ndim - 1)]
        shape[axis] = hidden.shape[axis]
        hidden = hidden * (torch.rand(tuple(shape), device=hidden.device) >= drops.rank)
        scale /= 1.0 - drops.rank
    return hidden, (pair.up * scale).to(hidden.dtype).flatten(1)


def _decomposed(
    delta: Decomposed,
    layer: nn.Module,
    x: torch.Tensor,
    output: torch.Tensor,
    strength: float,
    drops: Drops,
) -> torch.Tensor:
    """The norm is a constant of the backward pass, as in section 4.3 of the paper."""
    without_module = Drops(drops.dropout, drops.rank)
    norm = norms_of(weight_of(layer), delta.inner, by_column=delta.by_column)
    ratio = delta.magnitude.float().reshape(norm.shape) / norm
    if not isinstance(layer, nn.Linear):
        weight = weight_of(layer).float()
        new = (weight + delta.inner.change(weight)) * ratio - weight
        return _applied(layer, x, (new * strength).to(x.dtype))
    if delta.by_column:
        ratio = ratio.flatten()
        moved = x * (strength * (ratio - 1)).to(x.dtype)
        base = _without_bias(layer, type(layer).forward(layer, moved))
        scaled = x * ratio.to(x.dtype)
        return base + added(delta.inner, layer, scaled, output, strength, without_module)
    ratio = ratio.flatten()
    plain = _without_bias(layer, output)
    inner = added(delta.inner, layer, x, output, 1.0, without_module)
    return plain * (strength * (ratio - 1)).to(plain.dtype) + inner * (strength * ratio).to(
        inner.dtype
    )


def _kron(delta: Kron, x: torch.Tensor, strength: float) -> torch.Tensor:
    """(A ⊗ B) x is A X Bᵀ of x as a matrix: neither the product nor the weight is made."""
    first = (delta.first() * (delta.scale * strength)).to(x.dtype)
    cut = x.reshape(*x.shape[:-1], first.shape[1], -1)
    if delta.w2 is None:
        assert delta.w2_a is not None and delta.w2_b is not None
        cut = F.linear(F.linear(cut, delta.w2_b.to(x.dtype)), delta.w2_a.to(x.dtype))
    else:
        cut = F.linear(cut, delta.w2.to(x.dtype))
    return torch.matmul(first, cut).flatten(-2)


def _dropped(change: torch.Tensor, layer: nn.Module, drops: Drops) -> torch.Tensor:
    if drops.rank:
        axis = -1 if isinstance(layer, nn.Linear) else 1
        shape = [change.shape[0], *[1] * (change.ndim - 1)]
        shape[axis] = change.shape[axis]
        kept = torch.rand(tuple(shape), device=change.device) >= drops.rank
        change = change * (kept / (1.0 - drops.rank)).to(change.dtype)
    return F.dropout(change, drops.dropout) if drops.dropout else change


def _applied(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer's product with another weight, without bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    return cast(Any, layer)._conv_forward(x, weight, None)


def _pointwise(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A convolution that looks at one place alone."""
    flat = weight.flatten(1).to(x.dtype)
    kernel = flat.reshape(*flat.shape, *(1,) * (x.ndim - 2))
    return _CONVOLUTIONS[x.ndim](x, kernel)


def _without_bias(layer: nn.Module, output: torch.Tensor) -> torch.Tensor:
    bias = cast("torch.Tensor | None", layer.bias)
    if bias is None:
        return output
    shape = (-1,) if isinstance(layer, nn.Linear) else (-1, *(1,) * (output.ndim - 2))
    return output - bias.to(output.dtype).reshape(shape)


def _last(layer: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """With the channels at the end."""
    return output if isinstance(layer, nn.Linear) else output.movedim(1, -1)


def _back(layer: nn.Module, output: torch.Tensor) -> torch.Tensor:
    return output if isinstance(layer, nn.Linear) else output.movedim(-1, 1)


class _HadaLinear(torch.autograd.Function):
    """x times the product of two low-rank pairs; the backward pass makes that matrix again.

    Kept, it would be as large as the layer's weight, for each layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        w1_a: torch.Tensor,
        w1_b: torch.Tensor,
        w2_a: torch.Tensor,
        w2_b: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, w1_a, w1_b, w2_a, w2_b)
        with torch.autocast(x.device.type, enabled=False):
            weight = (w1_a @ w1_b).mul_(w2_a @ w2_b).to(x.dtype)
            return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        x, w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            first, second = w1_a @ w1_b, w2_a @ w2_b
            to_x = None
            if ctx.needs_input_grad[0]:
                to_x = gradient @ (first * second).to(gradient.dtype)
            flat, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
            to_weight = (flat.T @ inputs.to(flat.dtype)).float()
            to_first, to_second = to_weight * second, to_weight * first
            return (
                to_x,
                to_first @ w1_b.T,
                w1_a.T @ to_first,
                to_second @ w2_b.T,
                w2_a.T @ to_second,
            )


def on_bias(bias: Difference, layer: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """What a difference of the bias adds to each place of the output."""
    shape = (-1,) if isinstance(layer, nn.Linear) else (-1, *(1,) * (output.ndim - 2))
    return bias.value.to(output.dtype).reshape(shape)
