"""What the denoiser makes of text, picture and scalars before its blocks see them."""

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
Real = tuple[int, ...] | torch.Tensor
"""Which tokens of each text are real: how many of the first, or, with gaps between them, a mask (B, T),
bool. Either is on the host.
"""


class Embedding(nn.Module):
    """A vector or a sinusoid to the width of the network; float32."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = PreciseLinear(width, dim)
        self.linear_2 = PreciseLinear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, width) to (B, D)."""
        return self.linear_2(F.silu(self.linear_1(x)))


class Scalars(nn.Module):
    """Time, guidance and pooled text as one vector; float32."""

    def __init__(self, pooled_dim: int, dim: int, *, guidance: bool) -> None:
        super().__init__()
        self.timestep_embedder = Embedding(FREQUENCIES, dim)
        self.guidance_embedder = Embedding(FREQUENCIES, dim) if guidance else None
        self.text_embedder = Embedding(pooled_dim, dim)

    def forward(
        self, timestep: torch.Tensor, pooled: torch.Tensor, guidance: torch.Tensor | None
    ) -> torch.Tensor:
        """(B,) in 0 to 1000, (B, pooled_dim) and (B,), 1000 times the scale, to (B, D)."""
        vec = self.timestep_embedder(sinusoid(timestep)) + self.text_embedder(pooled)
        if self.guidance_embedder is None:
            return vec
        if guidance is None:
            raise ValueError("this checkpoint was distilled with guidance: its scale is an input")
        return vec + self.guidance_embedder(sinusoid(guidance))


class TextScalars(nn.Module):
    """Time and the mean of a text's real tokens as one vector; float32."""

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = Embedding(FREQUENCIES, dim)
        self.text_embedder = Embedding(text_dim, dim)

    def forward(self, timestep: torch.Tensor, text: torch.Tensor, real: Real) -> torch.Tensor:
        """(B,) in 0 to 1000, B T D and what of it is real to (B, D)."""
        # One by one: a tensor of counts would have to be waited for. No tokens have the mean zero.
        if isinstance(real, torch.Tensor):
            parts = [one[mask] for one, mask in zip(text, real.to(text.device), strict=True)]
        else:
            parts = [one[:n] for one, n in zip(text, real, strict=True)]
        mean = torch.stack([part.float().sum(dim=0) / max(len(part), 1) for part in parts])
        return self.timestep_embedder(sinusoid(timestep)) + self.text_embedder(mean)


class Projection(nn.Module):
    """The first layer of a feed-forward pair, under the name that the checkpoint has for it."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B L D to B L inner."""
        return self.proj(x)


class FeedForward(nn.Module):
    """Two linear layers: `net.0.proj` and `net.2`.

    Args:
        dim: Width; inside it is four times as wide.
        silu: Between the layers SiLU, as the refiner has it, in place of GELU by tanh.
    """

    def __init__(self, dim: int, *, silu: bool = False) -> None:
        super().__init__()
        between = nn.SiLU() if silu else nn.GELU(approximate="tanh")
        self.net = nn.ModuleList([Projection(dim, 4 * dim), between, nn.Linear(4 * dim, dim)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B L D in and out."""
        for layer in self.net:
            x = layer(x)
        return x


class RefinerAttention(nn.Module):
    """Attention among a text's tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x: torch.Tensor, seen: torch.Tensor | None, lengths: Lengths) -> torch.Tensor:
        """B T D in and out; see `TokenRefiner`."""
        q, k, v = (split_heads(layer(x)) for layer in (self.to_q, self.to_k, self.to_v))
        if seen is None:
            out = attention(q, k, v, lengths=lengths)
        else:
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen
            ).transpose(1, 2)
        return self.to_out[0](out.flatten(2))


class Gates(nn.Module):
    """The two gates of a refiner block; float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = PreciseLinear(dim, 2 * dim)

    def forward(self, vec: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, D) to two (B, 1, D)."""
        return self.linear(F.silu(vec))[:, None].chunk(2, dim=2)


class RefinerBlock(nn.Module):
    """Attention among a text's tokens, then feed-forward, both gated by time and mean."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = RefinerAttention(dim)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.ff = FeedForward(dim, silu=True)
        self.norm_out = Gates(dim)

    def forward(
        self, x: torch.Tensor, vec: torch.Tensor, seen: torch.Tensor | None, lengths: Lengths
    ) -> torch.Tensor:
        """B T D in and out; `vec` is (B, D), float32."""
        gate, gate2 = self.norm_out(vec)
        x = added(x, self.attn(self.norm1(x), seen, lengths), gate)
        return added(x, self.ff(self.norm2(x)), gate2)


class Refiner(nn.Module):
    """The blocks, under the name that the checkpoint has for them."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.refiner_blocks = nn.ModuleList(RefinerBlock(dim) for _ in range(depth))

    def forward(
        self, x: torch.Tensor, vec: torch.Tensor, seen: torch.Tensor | None, lengths: Lengths
    ) -> torch.Tensor:
        """B T D in and out."""
        for block in self.refiner_blocks:
            x = block(x, vec, seen, lengths)
        return x


class TokenRefiner(nn.Module):
    """Hidden states of a causal language model, made to see one another and the time."""

    def __init__(self, text_dim: int, dim: int, depth: int) -> None:
        super().__init__()
        self.time_text_embed = TextScalars(text_dim, dim)
        self.proj_in = nn.Linear(text_dim, dim)
        self.token_refiner = Refiner(dim, depth)

    def forward(
        self, text: torch.Tensor, timestep: torch.Tensor, real: Real, dtype: torch.dtype
    ) -> torch.Tensor:
        """B T text_dim to B T D in `dtype`.

        Args:
            text: Hidden states; what is not real is not looked at.
            timestep: (B,), 0 to 1000.
            real: The real tokens. Real ones look at real ones, and everyone may look at the first.
            dtype: What is computed in.
        """
        vec = self.time_text_embed(timestep, text, real)
        x = self.proj_in(text.to(dtype)).to(dtype)
        if not isinstance(real, torch.Tensor):
            return self.token_refiner(x, vec, None, tuple(max(n, 1) for n in real))
        seen = (real[:, None, :, None] & real[:, None, None, :]).contiguous()
        seen[..., 0] = True
        return self.token_refiner(x, vec, seen.to(x.device), None)


class ImageProjection(nn.Module):
    """SigLIP's tokens to the width of the network."""

    def __init__(self, image_dim: int, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(image_dim, 3 * dim)
        self.down = nn.Linear(3 * dim, dim)

    def forward(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """B L image_dim to B L D in `dtype`."""
        return self.down(F.silu(self.up(x.to(dtype)))).to(dtype)


def real_tokens(mask: torch.Tensor) -> Real:
    """Which tokens of each text are real, from a mask (B, T) of bools or numbers on the host."""
    mask = mask.bool()
    leading = bool((mask[:, :-1] >= mask[:, 1:]).all())
    return tuple(mask.sum(dim=1).tolist()) if leading else mask


def trimmed(text: torch.Tensor, real: Real) -> torch.Tensor:
    """Text B T D, cut to the longest item where real tokens come first."""
    return text if isinstance(real, torch.Tensor) else text[:, : max(*real, 1)]


def kept(image: torch.Tensor, text: torch.Tensor, real: Real) -> tuple[torch.Tensor, Lengths]:
    """Image tokens, then text tokens, B T D, cut to the longest item, and how many each keeps.

    As many are kept of an item as there are image tokens and real text tokens: the first ones.

    Args:
        image: B L D.
        text: B T D.
        real: The real text tokens.
    """
    words = real.sum(dim=1).tolist() if isinstance(real, torch.Tensor) else real
    counts = [image.shape[1] + n for n in words]
    both = torch.cat([image, text], dim=1)[:, : max(counts)]
    return both, None if min(counts) == max(counts) else tuple(counts)


def added(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Of x + gate y the sum, float32 inside, in the dtype of x."""
    return torch.addcmul(x.float(), y.float(), gate).to(x.dtype)


def sinusoid(value: torch.Tensor) -> torch.Tensor:
    """Cosines, then sines, of `value` at 128 frequencies: (B, 256); float32, as trained."""
    half = FREQUENCIES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=value.device) / half
    angles = torch.outer(value.float(), torch.exp(-math.log(10000.0) * exponents))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def split_heads(x: torch.Tensor) -> torch.Tensor:
    """B L D to B L H 128."""
    return x.unflatten(-1, (-1, HEAD))
