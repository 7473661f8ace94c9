"""One LoRA pair: two matrices and alpha, and the sizes that follow from them."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Pair(NamedTuple):
    """The change of one linear layer: `scale * up @ down`.

    Args:
        down: (rank, inputs).
        up: (outputs, rank).
        alpha: The scale is alpha / rank; None or 0 means alpha = rank.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """The factor alpha / rank.

        >>> Pair(torch.zeros(4, 8), torch.zeros(8, 4), 2.0).scale
        0.5
        """
        return (self.alpha or self.rank) / self.rank

    def delta(self) -> torch.Tensor:
        """The whole change, (outputs, inputs), in float32."""
        return (self.up.float() * self.scale) @ self.down.float()

    def norm(self) -> float:
        """Frobenius norm of `delta`, from rank-sized products only."""
        up, down = self.up.double(), self.down.double()
        squared = ((up.T @ up) * (down @ down.T)).sum()
        return float(squared.clamp(min=0).sqrt()) * abs(self.scale)
