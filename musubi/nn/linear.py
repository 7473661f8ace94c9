"""Linear layers with a precision or a layout of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class PreciseLinear(nn.Linear):
    """Multiplies in float32 and returns float32, whatever it is stored in and autocast says.

    Widening a stored bfloat16 or float16 weight is exact, so nothing is gained by storing more.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(input.float(), self.weight.float(), bias)


class PatchEmbedding(nn.Conv3d):
    """Non-overlapping patches to tokens: stored as a convolution, computed as the product it is."""

    def __init__(self, channels: int, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """B C F H W to B L D, tokens in the order F, H, W."""
        t, h, w = self.kernel_size
        patches = rearrange(
            input, "b c (f t) (y h) (x w) -> b (f y x) (c t h w)", t=t, h=h, w=w
        ).to(self.weight.dtype)
        return F.linear(patches, self.weight.flatten(1), self.bias)
