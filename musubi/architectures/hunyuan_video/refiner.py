"""What HunyuanVideo's denoiser makes of its text and scalars before the blocks see them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from musubi.nn.attention import attention
from musubi.nn.linear import PreciseLinear
from musubi.nn.norm import LayerNorm

HEAD = 128
FREQUENCIES = 256
Lengths = tuple[int, ...] | None
"""Real tokens of each item of a batch, on the host; None: all are."""


class TimeEmbedding(nn.Module):
    """A number a sample, the timestep or the guidance, to the width of the network; float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            PreciseLinear(FREQUENCIES, dim), nn.SiLU(), PreciseLinear(dim, dim)
        )

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """(B,) to (B, D)."""
        return self.mlp(sinusoid(value))


class TextSummary(nn.Module):
    """The mean of a text's tokens, embedded; float32."""

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = PreciseLinear(text_dim, dim)
        self.linear_2 = PreciseLinear(dim, dim)

    def forward(self, text: torch.Tensor, lengths: Lengths) -> torch.Tensor:
        """B T D, zero beyond each length, to (B, D)."""
        counts = [text.shape[1]] * text.shape[0] if lengths is None else lengths
        total = text.float().sum(dim=1)
        # one by one: a tensor of counts would have to be waited for
        mean = torch.stack([one / n for one, n in zip(total, counts, strict=True)])
        return self.linear_2(F.silu(self.linear_1(mean)))


class RefinerMlp(nn.Module):
    """Feed-forward layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B T D in and out."""
        return self.fc2(F.silu(self.fc1(x)))


class RefinerBlock(nn.Module):
    """Attention among a text's tokens, then feed-forward, both gated by time and summary."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.self_attn_qkv = nn.Linear(dim, 3 * dim)
        self.self_attn_proj = nn.Linear(dim, dim)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.mlp = RefinerMlp(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), PreciseLinear(dim, 2 * dim))

    def forward(self, x: torch.Tensor, c: torch.Tensor, lengths: Lengths) -> torch.Tensor:
        """B T D in and out; `c` is (B, D), float32."""
        gate, gate2 = self.adaLN_modulation(c)[:, None].chunk(2, dim=2)
        q, k, v = split_heads(self.self_attn_qkv(self.norm1(x)))
        y = self.self_attn_proj(attention(q, k, v, lengths=lengths).flatten(2))
        x = torch.addcmul(x.float(), y.float(), gate).to(x.dtype)
        y = self.mlp(self.norm2(x))
        return torch.addcmul(x.float(), y.float(), gate2).to(x.dtype)


class Refiner(nn.Module):
    """The blocks, under the name that the checkpoint has for them."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RefinerBlock(dim) for _ in range(depth))

    def forward(self, x: torch.Tensor, c: torch.Tensor, lengths: Lengths) -> torch.Tensor:
        """B T D in and out."""
        for block in self.blocks:
            x = block(x, c, lengths)
        return x


class TokenRefiner(nn.Module):
    """Hidden states of a causal language model, made to see one another and the time."""

    def __init__(self, text_dim: int, dim: int, depth: int) -> None:
        super().__init__()
        self.input_embedder = nn.Linear(text_dim, dim)
        self.t_embedder = TimeEmbedding(dim)
        self.c_embedder = TextSummary(text_dim, dim)
        self.individual_token_refiner = Refiner(dim, depth)

    def forward(
        self, text: torch.Tensor, timestep: torch.Tensor, dtype: torch.dtype, lengths: Lengths
    ) -> torch.Tensor:
        """B T text_dim, zero beyond each length, to B T D in `dtype`; `timestep` is 0 to 1000."""
        c = self.t_embedder(timestep) + self.c_embedder(text, lengths)
        x = self.input_embedder(text.to(dtype)).to(dtype)
        return self.individual_token_refiner(x, c, lengths)


def sinusoid(value: torch.Tensor, dim: int = FREQUENCIES) -> torch.Tensor:
    """Cosines, then sines, of `value` at `dim / 2` frequencies: (B, dim); float32, as trained."""
    exponents = torch.arange(dim // 2, dtype=torch.float32, device=value.device) / (dim // 2)
    angles = torch.outer(value.float(), torch.exp(-math.log(10000.0) * exponents))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def split_heads(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """B L 3D to queries, keys and values, each B L H 128."""
    q, k, v = qkv.unflatten(-1, (3, -1, HEAD)).unbind(2)
    return q, k, v
