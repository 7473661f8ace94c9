"""Spatial tiles: a network applied to overlapping pieces whose results are blended linearly."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one axis: a stride apart, the last one flush with the end.

    >>> starts(80, 32, 8)
    [0, 24, 48]
    >>> starts(20, 32, 8)
    [0]
    """
    if length <= tile:
        return [0]
    stride = tile - overlap
    return [*range(0, length - tile, stride), length - tile]


def tiled(
    apply: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    tile: int,
    overlap: int,
    scale: Fraction,
) -> torch.Tensor:
    """`apply` over tiles of the last two axes, as if over the whole.

    Args:
        apply: Takes a tile (…, h, w) and returns (…, h * scale, w * scale).
        x: The whole, (…, H, W).
        tile: Side of a tile, in cells of `x`.
        overlap: How much neighbours share, in cells of `x`; less than `tile`.
        scale: Cells of the result per cell of `x`; tiles begin on whole cells of both.

    Returns:
        The blended whole, float32.
    """
    step = scale.denominator
    if tile % step or overlap % step or not 0 <= overlap < tile:
        raise ValueError(f"tile {tile} and overlap {overlap} do not fit the scale {scale}")
    height, width = x.shape[-2:]
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return apply(x).float()
    total = weights = None
    for top in rows:
        for left in columns:
            piece = apply(x[..., top : top + tile, left : left + tile]).float()
            if total is None or weights is None:
                size = (int(height * scale), int(width * scale))
                total = piece.new_zeros(*piece.shape[:-2], *size)
                weights = piece.new_zeros(size)
            y0, x0 = int(top * scale), int(left * scale)
            h, w = piece.shape[-2:]
            ramp = int(overlap * scale)
            weight = torch.outer(
                _weight(h, y0, total.shape[-2], ramp, x.device),
                _weight(w, x0, total.shape[-1], ramp, x.device),
            )
            total[..., y0 : y0 + h, x0 : x0 + w] += piece * weight
            weights[y0 : y0 + h, x0 : x0 + w] += weight
    assert total is not None and weights is not None
    return total.div_(weights)


def _weight(length: int, start: int, whole: int, ramp: int, device: torch.device) -> torch.Tensor:
    # Rises over the overlap, but not at the picture's own edges; sums are divided out afterwards.
    weight = torch.ones(length, device=device)
    n = min(ramp, length)
    slope = (torch.arange(n, device=device) + 0.5) / max(n, 1)
    if start > 0:
        weight[:n] *= slope
    if start + length < whole:
        weight[length - n :] *= slope.flip(0)
    return weight
