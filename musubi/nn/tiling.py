"""Tiles in space and windows in time: a network applied to overlapping pieces, results blended linearly."""

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


def windowed(
    apply: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    window: int,
    overlap: int,
    scale: Fraction,
) -> torch.Tensor:
    """`apply` over windows of the frames, for networks whose first frame stands for itself.

    n k + 1 frames become k' + 1 of the result, so each window but the first takes one frame more on
    its left, whose result is dropped; the frames that two windows share are blended linearly.

    Args:
        apply: Takes frames (…, n + 1, h, w) and returns (…, n * scale + 1, h', w').
        x: The whole, (…, F, H, W).
        window: Length of a window, in frames of `x`.
        overlap: How many frames neighbours share; less than `window`.
        scale: Frames of the result per frame of `x`; windows begin on whole frames of both.

    Returns:
        The joined whole, float32.
    """
    step = scale.denominator
    if window % step or overlap % step or not 0 <= overlap < window:
        raise ValueError(f"window {window} and overlap {overlap} do not fit the scale {scale}")
    count = x.shape[-3]
    stride = window - overlap
    if count <= window + 1:
        return apply(x).float()
    blend, kept = int(overlap * scale), int(stride * scale)
    out: list[torch.Tensor] = []
    before: torch.Tensor | None = None
    # The last window reaches beyond what the one before it covers.
    for start in range(0, count - 1 - overlap, stride):
        piece = apply(x[..., start : start + window + 1, :, :]).float()
        if before is not None:
            piece = _crossfaded(before, piece[..., 1:, :, :], blend)
        last = start + window + 1 >= count
        keep = piece.shape[-3] if last else kept + (before is None)
        out.append(piece[..., :keep, :, :])
        before = piece
    return torch.cat(out, dim=-3)


def _crossfaded(before: torch.Tensor, after: torch.Tensor, count: int) -> torch.Tensor:
    # The first frame is the earlier window's, as the official code blends.
    n = min(count, before.shape[-3], after.shape[-3])
    if n == 0:
        return after
    weight = (torch.arange(n, device=after.device) / count).view(n, 1, 1)
    mixed = before[..., before.shape[-3] - count :, :, :][..., :n, :, :] * (1 - weight)
    mixed = mixed + after[..., :n, :, :] * weight
    return torch.cat([mixed, after[..., n:, :, :]], dim=-3)
