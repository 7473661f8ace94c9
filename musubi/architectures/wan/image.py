"""The image side of the denoiser: CLIP features to tokens, in the checkpoints that have it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

FEATURES = 1280
TOKENS = 257


class ImageEmbedding(nn.Module):
    """CLIP features B I 1280 to tokens B I D.

    Args:
        dim: Width of the denoiser.
        features: Width of the features.
        positions: Whether two images (first and last frame) are told apart by learned positions.
    """

    def __init__(self, dim: int, features: int = FEATURES, *, positions: bool) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, features),
            nn.GELU(),
            nn.Linear(features, dim),
            nn.LayerNorm(dim),
        )
        if positions:
            self.emb_pos = nn.Parameter(torch.zeros(1, 2 * TOKENS, features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features of one image, or of two joined along the tokens."""
        dtype = self.proj.get_parameter("1.weight").dtype
        x = features.to(dtype)
        if hasattr(self, "emb_pos"):
            x = x + self.emb_pos.to(dtype)
        for layer in self.proj:
            if isinstance(layer, nn.LayerNorm):
                weight, bias = layer.weight.float(), layer.bias.float()
                x = F.layer_norm(x.float(), layer.normalized_shape, weight, bias, layer.eps)
                x = x.to(dtype)
            else:
                x = layer(x)
        return x
