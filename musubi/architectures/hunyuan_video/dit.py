"""HunyuanVideo's denoiser, with the module names of the released checkpoints.

Axes: B batch, C channels, F frames, H, W (latent cells), L video tokens, T text tokens, D width,
S = L + T. Kong et al., https://arxiv.org/abs/2412.03603. Order of reading: `HunyuanDiT.forward`,
`DoubleBlock`, `SingleBlock`, then `refiner.TokenRefiner`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from musubi.architectures.hunyuan_video.refiner import (
    HEAD,
    Lengths,
    TimeEmbedding,
    TokenRefiner,
    split_heads,
)
from musubi.errors import CheckpointError
from musubi.nn import rope
from musubi.nn.attention import attention
from musubi.nn.linear import PatchEmbedding, PreciseLinear
from musubi.nn.norm import RMSNorm, gated, modulated
from musubi.plugin import Shapes

PATCH = (1, 2, 2)
MLP_RATIO = 4
THETA = 256.0
# Of a head's 128 dimensions 16 turn with time, 56 with height, 56 with width.
ROPE_SIZES = (16, 56, 56)


class PooledEmbedding(nn.Module):
    """The pooled text, or any vector, to the width of the network; float32."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.in_layer = PreciseLinear(width, dim)
        self.out_layer = PreciseLinear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, width) to (B, D)."""
        return self.out_layer(F.silu(self.in_layer(x)))


class Modulation(nn.Module):
    """Shifts, scales and gates from the embedded time, guidance and pooled text."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(dim, parts * dim)

    def forward(self, vec: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """(B, D) float32 to `parts` tensors (B, 1, D), float32, multiplied in `dtype`."""
        return self.linear(F.silu(vec).to(dtype)).float()[:, None].chunk(self.parts, dim=2)


class Mlp(nn.Module):
    """Feed-forward layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B L D in and out."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DoubleBlock(nn.Module):
    """Video and text, each with weights of its own, meet in one attention.

    Modulation and residual sums are float32 inside; between blocks tokens have the compute dtype.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.img_mod = Modulation(dim, 6)
        self.img_attn_qkv = nn.Linear(dim, 3 * dim)
        self.img_attn_q_norm = RMSNorm(HEAD)
        self.img_attn_k_norm = RMSNorm(HEAD)
        self.img_attn_proj = nn.Linear(dim, dim)
        self.img_mlp = Mlp(dim)
        self.txt_mod = Modulation(dim, 6)
        self.txt_attn_qkv = nn.Linear(dim, 3 * dim)
        self.txt_attn_q_norm = RMSNorm(HEAD)
        self.txt_attn_k_norm = RMSNorm(HEAD)
        self.txt_attn_proj = nn.Linear(dim, dim)
        self.txt_mlp = Mlp(dim)

    def forward(
        self,
        img: torch.Tensor,
        txt: torch.Tensor,
        vec: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        lengths: Lengths = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video tokens B L D and text tokens B T D, in and out.

        Args:
            img: Video tokens.
            txt: Text tokens, padded at the end.
            vec: (B, D), float32.
            cos: (L, 64).
            sin: (L, 64).
            lengths: Tokens of each item, video and text; None: all are real.
        """
        i_shift, i_scale, i_gate, i_shift2, i_scale2, i_gate2 = self.img_mod(vec, img.dtype)
        t_shift, t_scale, t_gate, t_shift2, t_scale2, t_gate2 = self.txt_mod(vec, txt.dtype)
        iq, ik, iv = split_heads(
            self.img_attn_qkv(modulated(img, i_shift, i_scale, dtype=img.dtype))
        )
        tq, tk, tv = split_heads(
            self.txt_attn_qkv(modulated(txt, t_shift, t_scale, dtype=txt.dtype))
        )
        iq = rope.rotate(self.img_attn_q_norm(iq), cos, sin)
        ik = rope.rotate(self.img_attn_k_norm(ik), cos, sin)
        tq, tk = self.txt_attn_q_norm(tq), self.txt_attn_k_norm(tk)
        joint = attention(
            torch.cat([iq, tq], 1), torch.cat([ik, tk], 1), torch.cat([iv, tv], 1), lengths=lengths
        ).flatten(2)
        seen, read = joint[:, : img.shape[1]], joint[:, img.shape[1] :]
        img = gated(img, self.img_attn_proj(seen), i_gate)
        txt = gated(txt, self.txt_attn_proj(read), t_gate)
        img = gated(img, self.img_mlp(modulated(img, i_shift2, i_scale2, dtype=img.dtype)), i_gate2)
        txt = gated(txt, self.txt_mlp(modulated(txt, t_shift2, t_scale2, dtype=txt.dtype)), t_gate2)
        return img, txt


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side, over video and text as one sequence."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, (3 + MLP_RATIO) * dim)
        self.linear2 = nn.Linear((1 + MLP_RATIO) * dim, dim)
        self.q_norm = RMSNorm(HEAD)
        self.k_norm = RMSNorm(HEAD)
        self.modulation = Modulation(dim, 3)

    def forward(
        self,
        x: torch.Tensor,
        vec: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        lengths: Lengths = None,
    ) -> torch.Tensor:
        """Tokens B S D in and out, video first.

        Args:
            x: The tokens.
            vec: (B, D), float32.
            cos: (S, 64); text is not turned, its rows are ones.
            sin: (S, 64); zeros for text.
            lengths: Tokens of each item; None: all are real.
        """
        dim = x.shape[-1]
        shift, scale, gate = self.modulation(vec, x.dtype)
        y = self.linear1(modulated(x, shift, scale, dtype=x.dtype))
        qkv, hidden = y.split([3 * dim, MLP_RATIO * dim], dim=-1)
        q, k, v = split_heads(qkv)
        q = rope.rotate(self.q_norm(q), cos, sin)
        k = rope.rotate(self.k_norm(k), cos, sin)
        seen = attention(q, k, v, lengths=lengths).flatten(2)
        y = self.linear2(torch.cat([seen, F.gelu(hidden, approximate="tanh")], dim=-1))
        return gated(x, y, gate)


class FinalLayer(nn.Module):
    """Tokens to patches of velocity, float32."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.linear = PreciseLinear(dim, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), PreciseLinear(dim, 2 * dim))

    def forward(self, x: torch.Tensor, vec: torch.Tensor) -> torch.Tensor:
        """B L D and (B, D) to B L (channels · patch)."""
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=2)
        return self.linear(modulated(x, shift, scale))


class HunyuanDiT(nn.Module):
    """The velocity of latents at a time, given text, and guidance where it was distilled.

    Args:
        hidden: Width; a multiple of 128, the head size.
        double_depth: Blocks in which video and text have weights of their own.
        single_depth: Blocks in which they share them.
        refiner_depth: Blocks that refine the text.
        in_channels: Channels of the latents and of what is joined to them.
        out_channels: Channels of the velocity.
        text_dim: Width of the language model.
        pooled_dim: Width of the pooled text.
        guidance: Whether the guidance scale is an input.
    """

    def __init__(  # noqa: PLR0913 - one for each number in which files differ
        self,
        *,
        hidden: int,
        double_depth: int,
        single_depth: int,
        refiner_depth: int,
        in_channels: int,
        out_channels: int,
        text_dim: int,
        pooled_dim: int,
        guidance: bool,
    ) -> None:
        super().__init__()
        self.img_in = nn.ModuleDict({"proj": PatchEmbedding(in_channels, hidden, PATCH)})
        self.txt_in = TokenRefiner(text_dim, hidden, refiner_depth)
        self.time_in = TimeEmbedding(hidden)
        self.vector_in = PooledEmbedding(pooled_dim, hidden)
        self.guidance_in = TimeEmbedding(hidden) if guidance else None
        self.double_blocks = nn.ModuleList(DoubleBlock(hidden) for _ in range(double_depth))
        self.single_blocks = nn.ModuleList(SingleBlock(hidden) for _ in range(single_depth))
        patch = PATCH[0] * PATCH[1] * PATCH[2]
        self.final_layer = FinalLayer(hidden, patch * out_channels)
        self._tables = rope.Tables(ROPE_SIZES, theta=THETA)

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        text: Sequence[torch.Tensor] | torch.Tensor,
        pooled: torch.Tensor,
        *,
        lengths: Sequence[int] | None = None,
        guidance: torch.Tensor | None = None,
        joined: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The velocity, float32, shaped like the latents (B C F H W).

        Args:
            x: Noisy latents, B C F H W, H and W even.
            t: (B,), 0 clean to 1 noise.
            text: Hidden states of the language model: one (T, D) a sample, or B T D.
            pooled: Pooled text, (B, pooled_dim).
            lengths: How many leading tokens of each text are real, on the host; None: all. What
                lies beyond is not looked at.
            guidance: (B,), 1000 times the guidance scale; for checkpoints with that input, and
                ignored by others.
            joined: What the task puts beside the latents along the channels, B C' F H W.
        """
        _, _, frames, height, width = x.shape
        if height % PATCH[1] or width % PATCH[2]:
            raise ValueError(f"latents of {height}x{width} cells do not split into 2x2 patches")
        # Neither streamed nor stored in 8 bits, and no file keeps it wider than its products.
        dtype = self.txt_in.input_embedder.weight.dtype
        words, lengths = _packed(text, lengths)
        if joined is not None:
            x = torch.cat([x, joined.to(x.dtype)], dim=1)
        img = self.img_in["proj"](x).to(dtype)
        timestep = t.float() * 1000
        vec = self._vector(timestep, pooled, guidance)
        txt = self.txt_in(words, timestep, dtype, lengths)
        axes = (range(frames), range(height // PATCH[1]), range(width // PATCH[2]))
        cos, sin = self._tables(axes, x.device)
        tokens = None if lengths is None else tuple(img.shape[1] + n for n in lengths)
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, cos, sin, tokens)
        both = torch.cat([img, txt], dim=1)
        cos = F.pad(cos, (0, 0, 0, txt.shape[1]), value=1.0)
        sin = F.pad(sin, (0, 0, 0, txt.shape[1]))
        for block in self.single_blocks:
            both = block(both, vec, cos, sin, tokens)
        return rearrange(
            self.final_layer(both[:, : img.shape[1]], vec),
            "b (f h w) (c p q r) -> b c (f p) (h q) (w r)",
            f=frames // PATCH[0],
            h=height // PATCH[1],
            w=width // PATCH[2],
            p=PATCH[0],
            q=PATCH[1],
            r=PATCH[2],
        )

    def _vector(
        self, timestep: torch.Tensor, pooled: torch.Tensor, guidance: torch.Tensor | None
    ) -> torch.Tensor:
        vec = self.time_in(timestep) + self.vector_in(pooled)
        if self.guidance_in is None:
            return vec
        if guidance is None:
            raise ValueError("this checkpoint was distilled with guidance: its scale is an input")
        return vec + self.guidance_in(guidance)


def _packed(
    text: Sequence[torch.Tensor] | torch.Tensor, lengths: Sequence[int] | None
) -> tuple[torch.Tensor, Lengths]:
    """B T D, cut to the longest and zero beyond each item's end, and the lengths if they differ."""
    real = [len(one) for one in text] if lengths is None else [int(n) for n in lengths]
    if min(real) < 1:
        raise ValueError("a text needs at least one token")
    words = nn.utils.rnn.pad_sequence(
        [one[:n] for one, n in zip(text, real, strict=True)], batch_first=True
    )
    return words, None if min(real) == max(real) else tuple(real)


def infer(shapes: Shapes) -> dict[str, Any]:
    """Sizes of a HunyuanVideo denoiser, from our names and shapes.

    Raises:
        CheckpointError: It is something else.
    """
    needed = (
        "img_in.proj.weight",
        "txt_in.input_embedder.weight",
        "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight",
        "vector_in.in_layer.weight",
        "double_blocks.0.img_attn_qkv.weight",
        "single_blocks.0.linear1.weight",
        "final_layer.linear.weight",
    )
    absent = next((name for name in needed if name not in shapes), None)
    if absent is not None:
        raise CheckpointError(
            f"This is not a HunyuanVideo denoiser: it has no tensor {absent!r}.",
            fix="Give --dit a HunyuanVideo or SkyReels V1 model, such as mp_rank_00_model_states.pt.",
        )
    patch = tuple(shapes["img_in.proj.weight"])
    hidden = patch[0]
    if len(patch) != 5 or patch[2:] != PATCH or hidden % HEAD:
        raise CheckpointError(
            f"This is not a HunyuanVideo denoiser: its 'img_in.proj.weight' has the shape {patch}, "
            f"where HunyuanVideo has (a multiple of {HEAD}, channels, 1, 2, 2).",
            fix="Give --dit a HunyuanVideo or SkyReels V1 model.",
        )
    if patch[1] not in (16, 32):
        i2v = " It looks like HunyuanVideo-I2V." if patch[1] == 33 else ""
        raise CheckpointError(
            f"This denoiser takes {patch[1]} channels, where HunyuanVideo takes 16 and SkyReels V1 "
            f"image to video 32.{i2v}",
            fix="Give --dit a HunyuanVideo or SkyReels V1 model.",
        )
    return {
        "hidden": hidden,
        "double_depth": _count(shapes, "double_blocks."),
        "single_depth": _count(shapes, "single_blocks."),
        "refiner_depth": _count(shapes, "txt_in.individual_token_refiner.blocks."),
        "in_channels": patch[1],
        "out_channels": shapes["final_layer.linear.weight"][0] // (PATCH[0] * PATCH[1] * PATCH[2]),
        "text_dim": shapes["txt_in.input_embedder.weight"][1],
        "pooled_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance": "guidance_in.mlp.0.weight" in shapes,
    }


def _count(shapes: Shapes, stack: str) -> int:
    return len({n.removeprefix(stack).split(".")[0] for n in shapes if n.startswith(stack)})
