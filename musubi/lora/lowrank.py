"""Matrices of low rank: the best pair for a matrix, and several pairs as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from musubi.lora.delta import Delta, Pair

_EXACT = 1024  # of the shorter side: up to it all singular values are computed
_MORE = 16  # vectors beyond the rank, which make a random start exact enough
_ROUNDS = 6


@dataclass(frozen=True)
class Size:
    """How large a pair becomes.

    Args:
        rank: At most this; None: no bound.
        energy: Ranks are added until they hold this part of the squared norm; None: all.
    """

    rank: int | None = None
    energy: float | None = None

    def of(self, values: torch.Tensor, total: float) -> int:
        """The rank for these singular values, of a matrix with this squared norm; 0 for none."""
        most = min(len(values), self.rank or len(values))
        if not total:
            return 0
        if self.energy is None:
            return max(1, min(most, int((values > values[0] * 1e-7).sum())))
        held = values.double().square().cumsum(0) / total
        enough = (held >= self.energy * (1 - 1e-9)).nonzero()
        return min(most, int(enough[0]) + 1 if len(enough) else len(values))


def approximated(matrix: torch.Tensor, size: Size) -> tuple[Pair | None, float, float]:
    """The best pair of that size; with the squared norms of the matrix and of what is left over.

    Args:
        matrix: (outputs, inputs), or a kernel, in float32.
        size: Of the pair; None comes back for a matrix of zeros.
    """
    flat = matrix.flatten(1)
    total = float(flat.double().square().sum())
    if not total:
        return None, 0.0, 0.0
    u, s, v = _svd(flat, size, total)
    rank = size.of(s, total)
    root = s[:rank].sqrt()
    up, down = u[:, :rank] * root, root[:, None] * v[:rank]
    left = float((flat - up @ down).double().square().sum())
    shape = matrix.shape
    ones = (1,) * (matrix.ndim - 2)
    pair = Pair(down.reshape(rank, *shape[1:]), up.reshape(shape[0], rank, *ones), float(rank))
    return pair, total, left


def summed(pairs: Sequence[tuple[Pair, float]]) -> Pair:
    """Pairs of one layer, each with its strength, as one pair: exactly their sum."""
    folded = [(pair.folded(), strength) for pair, strength in pairs]
    down = torch.cat([pair.down for pair, _ in folded])
    up = torch.cat([pair.up * strength for pair, strength in folded], 1)
    return Pair(down, up, float(down.shape[0]))


def shortened(pair: Pair, size: Size) -> tuple[Pair | None, float, float]:
    """A plain pair of another size, by way of matrices of its rank; as `approximated`."""
    scaled = pair.folded()
    down, up = scaled.down.flatten(1).double(), scaled.up.flatten(1).double()
    left_q, left_r = torch.linalg.qr(up)
    right_q, right_r = torch.linalg.qr(down.T)
    u, s, v = torch.linalg.svd(left_r @ right_r.T)
    total = float(s.square().sum())
    rank = size.of(s, total)
    if not rank:
        return None, total, 0.0
    root = s[:rank].sqrt()
    made = Pair(
        (root[:, None] * (v[:rank] @ right_q.T)).float().reshape(rank, *pair.down.shape[1:]),
        ((left_q @ u[:, :rank]) * root).float().reshape(-1, rank, *pair.up.shape[2:]),
        float(rank),
    )
    return made, total, float(s[rank:].square().sum())


def added(
    changes: Sequence[tuple[Delta, float]], weight: torch.Tensor | None, size: Size
) -> tuple[Delta | None, float, float]:
    """Several changes of one weight as one pair.

    Args:
        changes: Each with its strength.
        weight: The weight, where one of them depends on it.
        size: Of the pair.

    Raises:
        TypeError: One depends on the weight, and there is none.
    """
    pairs = [(d, s) for d, s in changes if isinstance(d, Pair) and d.mid is None]
    if len(pairs) == len(changes):
        whole = summed(pairs)
        if size == Size():
            norm = whole.norm() ** 2
            return (whole, norm, 0.0) if norm else (None, 0.0, 0.0)
        return shortened(whole, size)
    total: torch.Tensor | None = None
    for delta, strength in changes:
        change = delta.matrix() if weight is None else delta.change(weight)
        total = change * strength if total is None else total.add_(change, alpha=strength)
    assert total is not None
    return approximated(total, size)


def _svd(
    flat: torch.Tensor, size: Size, total: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left vectors, values and right vectors (as rows): all of them, or as many as are needed."""
    short = min(flat.shape)
    bounded = size.rank is not None or size.energy is not None
    if short <= _EXACT or not bounded:
        return torch.linalg.svd(flat, full_matrices=False)
    count = size.rank or 64
    while True:
        wanted = min(short, 2 * count + _MORE)
        with torch.random.fork_rng(devices=[flat.device] if flat.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(flat, q=wanted, niter=_ROUNDS)
        held = float(s.double().square().sum()) / total
        if size.rank is not None or wanted == short or held >= (size.energy or 0.0):
            return u, s, v.T
        count *= 2
