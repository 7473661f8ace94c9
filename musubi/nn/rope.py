"""Rotary positions over several axes: tables computed once per size, applied to adjacent pairs.

Su et al., RoFormer, https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from musubi.nn.fusing import fusing

Table = tuple[torch.Tensor, torch.Tensor]
KEPT = 8
"""Tables that are remembered: a run meets few sizes at a time, and one takes up to 61 MB."""


def table(
    positions: Sequence[Sequence[float]],
    sizes: Sequence[int],
    *,
    theta: float,
    device: torch.device,
) -> Table:
    """Cosines and sines for the grid spanned by the axes, each (L, sum(sizes) / 2), float32.

    Angles are computed in float64: at position 1000 a float32 angle is off by 3e-5.

    Args:
        positions: For each axis the position of every index along it; the last axis runs fastest.
        sizes: For each axis how many of the head's dimensions it turns; even numbers.
        theta: The base of the frequencies.
        device: Where the tables are put.
    """
    lengths = [len(axis) for axis in positions]
    parts: list[torch.Tensor] = []
    for number, (axis, size) in enumerate(zip(positions, sizes, strict=True)):
        exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
        angles = torch.outer(torch.tensor(axis, dtype=torch.float64), theta**-exponents)
        shape = [1] * len(lengths) + [size // 2]
        shape[number] = lengths[number]
        parts.append(angles.view(shape).expand(*lengths, size // 2))
    angles = torch.cat(parts, dim=-1).flatten(0, -2)
    return angles.cos().float().to(device), angles.sin().float().to(device)


class Tables:
    """Tables of the sizes that were asked for last.

    Args:
        sizes: For each axis how many of the head's dimensions it turns; even numbers.
        theta: The base of the frequencies.
    """

    def __init__(self, sizes: Sequence[int], *, theta: float) -> None:
        self._sizes, self._theta = sizes, theta
        self._made: dict[Hashable, Table] = {}

    def __len__(self) -> int:
        return len(self._made)

    def __call__(self, positions: Sequence[Sequence[float]], device: torch.device) -> Table:
        """`table` of these positions, made when it is not at hand."""
        key = (tuple(map(tuple, positions)), device)
        if key not in self._made:
            if len(self._made) >= KEPT:
                self._made.pop(next(iter(self._made)))
            self._made[key] = table(positions, self._sizes, theta=self._theta, device=device)
        return self._made[key]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each adjacent pair (x[2i], x[2i+1]) of B L H D by its angle; float32 inside.

    Args:
        x: Queries or keys, B L H D.
        cos: (L, D / 2), or B L D / 2 where items are at places of their own.
        sin: Likewise.
    """
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    if fusing():
        # Each number with its neighbour: one kernel. Of two halves that are put together a compiler
        # writes all in float32 first.
        wide = x.float()
        turned = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        cos = torch.stack((cos, cos), -1).flatten(-2)
        sin = torch.stack((-sin, sin), -1).flatten(-2)
        return (wide * cos + turned * sin).to(x.dtype)
    if x.itemsize == 2:
        # One product of complex numbers instead of four, a sum, a difference and a copy.
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).to(x.dtype)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)
