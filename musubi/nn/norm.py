"""Norms that compute in float32 whatever they are given and stored in, and return what came."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """Root mean square over the last axis, with a weight (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (…, dim); the dtype of `x` is kept."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm with weight and bias; the dtype of what comes in is kept."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (…, dim)."""
        return F.layer_norm(
            input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        ).to(input.dtype)


def modulated(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float = 1e-6
) -> torch.Tensor:
    """Layer norm without weights, then `* (1 + scale) + shift`; float32 out.

    Args:
        x: (B, L, D) of any dtype.
        shift: (B, 1, D), float32.
        scale: (B, 1, D), float32.
        eps: Added to the variance.
    """
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift
