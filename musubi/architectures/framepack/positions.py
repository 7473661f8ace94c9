"""Where the packed tokens are in time and space: rotary tables by frame index, averaged for history."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

THETA = 256.0
# Of a head's 128 dimensions 16 turn with time, 56 with height, 56 with width.
ROPE_SIZES = (16, 56, 56)

Table = tuple[torch.Tensor, torch.Tensor]


def table(frames: torch.Tensor, rows: int, columns: int, *, scale: float = 1.0) -> Table:
    """Cosines and sines of a grid of patches, each B F H W 64, float32, as trained.

    Args:
        frames: Index of each latent frame, B F.
        rows: Patches from top to bottom.
        columns: Patches from left to right.
        scale: Height and width are multiplied by it, time is not.
    """
    device = frames.device
    grid = (
        frames.float()[:, :, None, None],
        (torch.arange(rows, device=device, dtype=torch.float32) * scale)[:, None],
        torch.arange(columns, device=device, dtype=torch.float32) * scale,
    )
    shape = (*frames.shape, rows, columns)
    angles = []
    for place, size in zip(grid, ROPE_SIZES, strict=True):
        exponents = torch.arange(0, size, 2, device=device, dtype=torch.float32) / size
        angles.append(place.expand(shape)[..., None] * (1.0 / THETA**exponents))
    whole = torch.cat(angles, dim=-1)
    return whole.cos(), whole.sin()


def averaged(found: Table, size: int) -> Table:
    """The table of patches `size` times as large in every direction.

    Cosines and sines themselves are averaged and not brought back to length 1: a large patch is at
    many places at once. What is missing at the far edges repeats the last.
    """
    cos, sin = (_pooled(part, size) for part in found)
    return cos, sin


def packed(tables: Sequence[Table]) -> Table:
    """Tables one behind the other, each B L 64, tokens in the order F, H, W."""
    cos, sin = zip(*tables, strict=True)
    return (
        torch.cat([part.flatten(1, 3) for part in cos], dim=1),
        torch.cat([part.flatten(1, 3) for part in sin], dim=1),
    )


def padded(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """B C F H W, with its last frame, row and column repeated up to multiples of `size`."""
    f, h, w = ((-length) % step for length, step in zip(x.shape[2:], size, strict=True))
    return F.pad(x, (0, w, 0, h, 0, f), mode="replicate") if f or h or w else x


def _pooled(part: torch.Tensor, size: int) -> torch.Tensor:
    # B F H W 64 → channels first, for the pooling layer
    x = padded(part.movedim(-1, 1), (size, size, size))
    return F.avg_pool3d(x, kernel_size=size).movedim(1, -1)
