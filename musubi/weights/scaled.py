"""Weights stored in 8 bits: which tensors of a file are scales, and the weights they stand for.

Read are plain casts (`X.weight` in e4m3 or e5m2), `fp8_scaled` files (a `scaled_fp8` marker,
`X.scale_weight`, `X.scale_input`) and their later form (`X.weight_scale`, `X.input_scale`,
`X.comfy_quant`), in e4m3 or int8. In both, W = X.weight * scale. The scales of inputs serve 8-bit products only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from musubi.errors import CheckpointError
from musubi.weights.dtypes import FP8

_MARKER = "scaled_fp8"
_WEIGHT_SCALES = ("scale_weight", "weight_scale")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK_HOST, _BLOCK_DEVICE = 2**17, 2**24  # numbers that are converted at once
_OTHER = ("scale_input", "input_scale", "comfy_quant", "weight_scale_2")


def split_scales(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The names that are weights, and for each scaled weight the name of its scale."""
    names = list(names)
    known = set(names)
    weights: list[str] = []
    scales: dict[str, str] = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        weight = f"{owner}.weight" if owner else "weight"
        if leaf == _MARKER or (leaf in _OTHER and weight in known):
            continue
        if leaf in _WEIGHT_SCALES and weight in known:
            scales[weight] = name
        else:
            weights.append(name)
    return weights, scales


def expand(
    name: str,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """What an 8-bit or scaled weight stands for; any other tensor as it is.

    Args:
        name: For messages.
        weight: (rows, …).
        scale: One number, or one for each row.
        dtype: Of what comes back: products are made in float32, then cast.

    Raises:
        CheckpointError: It is quantised in a way that is not read.
    """
    if scale is None:
        return _cast(weight, None, dtype) if weight.dtype in FP8 else weight
    if not weight.is_floating_point() and weight.dtype is not torch.int8:
        raise CheckpointError(
            f"{name!r} is quantised as {weight.dtype}, which is not read here.",
            fix="Use the file in bfloat16, float16, fp8 or int8.",
        )
    factor = scale.to(weight.device).float()
    if not _fits(tuple(weight.shape), tuple(factor.shape)):
        raise CheckpointError(
            f"The scale of {name!r} has the shape {tuple(scale.shape)}, where {tuple(weight.shape)} "
            "takes one number or one a row.",
            fix="Use the file in bfloat16, float16 or with one scale a tensor.",
        )
    if factor.numel() == 1:
        return _cast(weight, factor.reshape(()), dtype)
    return _cast(weight, factor.reshape(-1, *(1,) * (weight.ndim - 1)), dtype)


def joinable(
    names: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    scales: Mapping[str, str],
) -> bool:
    """Whether matrices of a file, joined along axis 0, are one 8-bit matrix with a scale a row.

    In e4m3 a scale may be missing, and is one; integers mean nothing without.

    Args:
        names: The matrices; one will do.
        shapes: Name in the file to shape.
        dtypes: Name in the file to dtype.
        scales: The scales from `split_scales`.
    """
    kinds = {dtypes[name] for name in names}
    if kinds != {torch.float8_e4m3fn} and not (kinds == {torch.int8} and set(names) <= set(scales)):
        return False
    return all(len(shapes[name]) == 2 for name in names) and all(
        _fits(shapes[name], shapes[scales[name]]) for name in names if name in scales
    )


def scale_rows(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The scale of a matrix as (rows, 1) float32 on its device; ones for None.

    Args:
        weight: (rows, columns).
        scale: One number, or one for each row.
    """
    if scale is None:
        return torch.ones(weight.shape[0], 1, device=weight.device)
    return scale.to(weight.device).float().reshape(-1, 1).expand(weight.shape[0], 1).contiguous()


def _fits(weight: tuple[int, ...], scale: tuple[int, ...]) -> bool:
    count = math.prod(scale)
    return count == 1 or (bool(weight) and count == weight[0] == scale[0])


def _cast(weight: torch.Tensor, factor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Weight * factor by way of float32, of which only a block exists at a time.

    Args:
        weight: (rows, …).
        factor: (), or (rows, 1, …).
        dtype: Dtype of the result.
    """
    if not weight.ndim:
        return _product(weight.float(), factor).to(dtype)
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    size = _BLOCK_HOST if weight.is_cpu else _BLOCK_DEVICE
    step = max(1, size * weight.shape[0] // max(1, weight.numel()))
    blocks = [slice(i, i + step) for i in range(0, weight.shape[0], step)]
    by_row = factor is not None and factor.ndim > 0
    if weight.is_cpu and weight.dtype in FP8 and not by_row:
        _look_up(weight, factor, out, blocks)
    elif dtype is torch.float32:
        out.copy_(weight)
        if factor is not None:
            out.mul_(factor)
    else:
        for block in blocks:
            rows = factor[block] if factor is not None and by_row else factor
            out[block].copy_(_product(weight[block].float(), rows))
    return out


def _product(weight: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    return weight if factor is None else weight * factor


def _look_up(
    weight: torch.Tensor, factor: torch.Tensor | None, out: torch.Tensor, blocks: list[slice]
) -> None:
    """Look up what each byte stands for: on a processor a tenth of the time of converting it."""
    numbers = torch.arange(256, dtype=torch.uint8).view(weight.dtype).float()
    kind = _INTEGERS[out.dtype.itemsize]
    table = _product(numbers, factor).to(out.dtype).view(kind).numpy()
    stored, room = weight.view(torch.uint8).numpy(), out.view(kind).numpy()

    def fill(block: slice) -> None:
        np.take(table, stored[block], out=room[block], mode="clip")

    threads = min(torch.get_num_threads(), len(blocks))
    if threads > 1:
        with ThreadPoolExecutor(threads, thread_name_prefix="expand") as pool:
            list(pool.map(fill, blocks))
    else:
        for block in blocks:
            fill(block)
