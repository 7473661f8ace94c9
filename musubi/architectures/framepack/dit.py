"""FramePack's denoiser, with the module names of the released checkpoints.

A window of video is denoised beside its history, which is packed: the nearer in time, the finer.
Axes: B batch, C channels, F frames, H, W (latent cells), L video tokens, T tokens of picture and
text, D width, S = L + T. Zhang and Agrawala, https://arxiv.org/abs/2504.12626. Order of reading:
`PackedDiT.forward`, `DoubleBlock`, `SingleBlock`, then `context` and `positions`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from musubi.architectures.framepack import positions
from musubi.architectures.framepack.context import (
    HEAD,
    FeedForward,
    ImageProjection,
    Lengths,
    Real,
    Scalars,
    TokenRefiner,
    added,
    kept,
    split_heads,
    trimmed,
)
from musubi.encoders.sizes import all_there, depth
from musubi.errors import CheckpointError
from musubi.nn import rope
from musubi.nn.attention import attention
from musubi.nn.linear import PatchEmbedding, PreciseLinear
from musubi.nn.norm import RMSNorm, modulated
from musubi.plugin import Shapes

PATCH = (1, 2, 2)
PATCH_2X = (2, 4, 4)
PATCH_4X = (4, 8, 8)
MLP_RATIO = 4

History = tuple[torch.Tensor | None, torch.Tensor]
"""Latents B C F H W, None for zeros, and their frame indices B F."""


class Modulation(nn.Module):
    """Shifts, scales and gates from the embedded time, guidance and pooled text."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(dim, parts * dim)

    def forward(self, vec: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """(B, D) float32 to `parts` tensors (B, 1, D), float32, multiplied in `dtype`."""
        return self.linear(F.silu(vec).to(dtype)).float()[:, None].chunk(self.parts, dim=2)


class JointAttention(nn.Module):
    """Attention over video and text, each with projections of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(HEAD)
        self.norm_k = RMSNorm(HEAD)
        self.add_q_proj = nn.Linear(dim, dim)
        self.add_k_proj = nn.Linear(dim, dim)
        self.add_v_proj = nn.Linear(dim, dim)
        self.norm_added_q = RMSNorm(HEAD)
        self.norm_added_k = RMSNorm(HEAD)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.to_add_out = nn.Linear(dim, dim)

    def forward(
        self,
        img: torch.Tensor,
        txt: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        lengths: Lengths,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """B L D and B T D, in and out."""
        iq = rope.rotate(self.norm_q(split_heads(self.to_q(img))), cos, sin)
        ik = rope.rotate(self.norm_k(split_heads(self.to_k(img))), cos, sin)
        tq = self.norm_added_q(split_heads(self.add_q_proj(txt)))
        tk = self.norm_added_k(split_heads(self.add_k_proj(txt)))
        iv, tv = split_heads(self.to_v(img)), split_heads(self.add_v_proj(txt))
        joint = attention(
            torch.cat([iq, tq], 1), torch.cat([ik, tk], 1), torch.cat([iv, tv], 1), lengths=lengths
        ).flatten(2)
        seen, read = joint[:, : img.shape[1]], joint[:, img.shape[1] :]
        return self.to_out[0](seen), self.to_add_out(read)


class DoubleBlock(nn.Module):
    """Video and text, each with weights of its own, meet in one attention.

    Modulation and residual sums are float32 inside; between blocks tokens have the compute dtype.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = Modulation(dim, 6)
        self.norm1_context = Modulation(dim, 6)
        self.attn = JointAttention(dim)
        self.ff = FeedForward(dim)
        self.ff_context = FeedForward(dim)

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
            img: Video tokens, history first.
            txt: Picture and text tokens, padded at the end.
            vec: (B, D), float32.
            cos: (B, L, 64).
            sin: (B, L, 64).
            lengths: Tokens of each item, video and text; None: all are real.
        """
        i_shift, i_scale, i_gate, i_shift2, i_scale2, i_gate2 = self.norm1(vec, img.dtype)
        t_shift, t_scale, t_gate, t_shift2, t_scale2, t_gate2 = self.norm1_context(vec, txt.dtype)
        seen, read = self.attn(
            modulated(img, i_shift, i_scale).to(img.dtype),
            modulated(txt, t_shift, t_scale).to(txt.dtype),
            cos,
            sin,
            lengths,
        )
        img = added(img, seen, i_gate)
        txt = added(txt, read, t_gate)
        img = added(img, self.ff(modulated(img, i_shift2, i_scale2).to(img.dtype)), i_gate2)
        txt = added(txt, self.ff_context(modulated(txt, t_shift2, t_scale2).to(txt.dtype)), t_gate2)
        return img, txt


class SelfAttention(nn.Module):
    """Attention over one sequence; what follows it is the block's own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(HEAD)
        self.norm_k = RMSNorm(HEAD)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: Lengths
    ) -> torch.Tensor:
        """B S D in and out."""
        q = rope.rotate(self.norm_q(split_heads(self.to_q(x))), cos, sin)
        k = rope.rotate(self.norm_k(split_heads(self.to_k(x))), cos, sin)
        return attention(q, k, split_heads(self.to_v(x)), lengths=lengths).flatten(2)


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side, over video and text as one sequence."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Modulation(dim, 3)
        self.attn = SelfAttention(dim)
        self.proj_mlp = nn.Linear(dim, MLP_RATIO * dim)
        self.proj_out = nn.Linear((1 + MLP_RATIO) * dim, dim)

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
            cos: (B, S, 64); text is not turned, its rows are ones.
            sin: (B, S, 64); zeros for text.
            lengths: Tokens of each item; None: all are real.
        """
        shift, scale, gate = self.norm(vec, x.dtype)
        y = modulated(x, shift, scale).to(x.dtype)
        seen = self.attn(y, cos, sin, lengths)
        hidden = F.gelu(self.proj_mlp(y), approximate="tanh")
        return added(x, self.proj_out(torch.cat([seen, hidden], dim=-1)), gate)


class HistoryEmbedding(nn.Module):
    """Latents of the history to tokens, by patches of three sizes."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = PatchEmbedding(channels, dim, PATCH)
        self.proj_2x = PatchEmbedding(channels, dim, PATCH_2X)
        self.proj_4x = PatchEmbedding(channels, dim, PATCH_4X)

    def forward(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """B C F H W to B L D, by patches `size` (1, 2 or 4) times as large."""
        layer = {1: self.proj, 2: self.proj_2x, 4: self.proj_4x}[size]
        return layer(positions.padded(x, layer.kernel_size))


class FinalNorm(nn.Module):
    """Layer norm, then scale and shift from the vector: scales first in this checkpoint."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, x: torch.Tensor, vec: torch.Tensor) -> torch.Tensor:
        """B L D and (B, D) to B L D, float32."""
        scale, shift = self.linear(F.silu(vec).to(x.dtype)).float()[:, None].chunk(2, dim=2)
        return modulated(x, shift, scale)


class PackedDiT(nn.Module):
    """The velocity of a window of latents at a time, given its history, a picture and text.

    Args:
        hidden: Width; a multiple of 128, the head size.
        double_depth: Blocks in which video and text have weights of their own.
        single_depth: Blocks in which they share them.
        refiner_depth: Blocks that refine the text.
        channels: Channels of the latents.
        text_dim: Width of the language model.
        pooled_dim: Width of the pooled text.
        image_dim: Width of the picture's tokens.
        guidance: Whether the guidance scale is an input.
    """

    def __init__(  # noqa: PLR0913 - one for each number in which files differ
        self,
        *,
        hidden: int,
        double_depth: int,
        single_depth: int,
        refiner_depth: int,
        channels: int,
        text_dim: int,
        pooled_dim: int,
        image_dim: int,
        guidance: bool,
    ) -> None:
        super().__init__()
        self.x_embedder = nn.ModuleDict({"proj": PatchEmbedding(channels, hidden, PATCH)})
        self.context_embedder = TokenRefiner(text_dim, hidden, refiner_depth)
        self.time_text_embed = Scalars(pooled_dim, hidden, guidance=guidance)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(hidden) for _ in range(double_depth))
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(hidden) for _ in range(single_depth)
        )
        self.norm_out = FinalNorm(hidden)
        self.proj_out = PreciseLinear(hidden, PATCH[0] * PATCH[1] * PATCH[2] * channels)
        self.image_projection = ImageProjection(image_dim, hidden)
        self.clean_x_embedder = HistoryEmbedding(channels, hidden)

    def forward(  # noqa: PLR0913 - what conditions this model is many things
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        real: Real,
        pooled: torch.Tensor,
        image: torch.Tensor,
        *,
        indices: torch.Tensor,
        clean: History,
        clean_2x: History | None = None,
        clean_4x: History | None = None,
        guidance: torch.Tensor | None = None,
        rope_scale: float = 1.0,
    ) -> torch.Tensor:
        """The velocity, float32, shaped like the latents (B C F H W).

        Args:
            x: Noisy latents, B C F H W, H and W even.
            timestep: (B,), 0 clean to 1000 noise.
            text: Hidden states of the language model, B T text_dim.
            real: Which of them are real, as `context.real_tokens` finds out.
            pooled: Pooled text, (B, pooled_dim).
            image: Tokens of the picture, B 729 image_dim.
            indices: Frame index of each latent frame, B F.
            clean: History at full resolution.
            clean_2x: History in patches twice as large.
            clean_4x: History in patches four times as large.
            guidance: (B,), 1000 times the guidance scale; for checkpoints with that input, and
                ignored by others.
            rope_scale: What positions in height and width are multiplied by.
        """
        height, width = x.shape[3:]
        if height % PATCH[1] or width % PATCH[2]:
            raise ValueError(f"latents of {height}x{width} cells do not split into 2x2 patches")
        # Neither streamed nor stored in 8 bits, and no file keeps it wider than its products.
        dtype = self.context_embedder.proj_in.weight.dtype
        text = trimmed(text, real)
        img, (cos, sin) = self._packed(x, indices, (clean_4x, clean_2x, clean), dtype, rope_scale)
        vec = self.time_text_embed(timestep, pooled, guidance)
        words = self.context_embedder(text, timestep, real, dtype)
        txt, counts = kept(self.image_projection(image, dtype), words, real)
        lengths = None if counts is None else tuple(img.shape[1] + n for n in counts)
        for block in self.transformer_blocks:
            img, txt = block(img, txt, vec, cos, sin, lengths)
        both = torch.cat([img, txt], dim=1)
        cos = F.pad(cos, (0, 0, 0, txt.shape[1]), value=1.0)
        sin = F.pad(sin, (0, 0, 0, txt.shape[1]))
        for block in self.single_transformer_blocks:
            both = block(both, vec, cos, sin, lengths)
        count = x.shape[2] * (height // PATCH[1]) * (width // PATCH[2])
        window = both[:, img.shape[1] - count : img.shape[1]]
        return rearrange(
            self.proj_out(self.norm_out(window, vec)),
            "b (f h w) (c q r) -> b c f (h q) (w r)",
            h=height // PATCH[1],
            w=width // PATCH[2],
            q=PATCH[1],
            r=PATCH[2],
        )

    def _packed(
        self,
        x: torch.Tensor,
        indices: torch.Tensor,
        history: tuple[History | None, History | None, History],
        dtype: torch.dtype,
        rope_scale: float,
    ) -> tuple[torch.Tensor, positions.Table]:
        """Tokens of 4x, 2x and clean history and of the window, B L D, and their table, B L 64."""
        batch, channels, _, height, width = x.shape
        rows, columns = height // PATCH[1], width // PATCH[2]
        tokens: list[torch.Tensor] = []
        tables: list[positions.Table] = []
        for size, part in zip((4, 2, 1), history, strict=True):
            if part is None:
                continue
            latents, places = part
            if latents is None:
                latents = x.new_zeros(batch, channels, places.shape[1], height, width)
            tokens.append(self.clean_x_embedder(latents.to(x.device), size).to(dtype))
            found = positions.table(places.to(x.device), rows, columns, scale=rope_scale)
            tables.append(found if size == 1 else positions.averaged(found, size))
        tokens.append(self.x_embedder["proj"](x).to(dtype))
        tables.append(positions.table(indices.to(x.device), rows, columns, scale=rope_scale))
        return torch.cat(tokens, dim=1), positions.packed(tables)


def infer(shapes: Shapes) -> dict[str, Any]:
    """Sizes of a FramePack denoiser, from our names and shapes.

    Raises:
        CheckpointError: It is something else.
    """
    fix = "Give --dit a FramePack model: FramePackI2V_HY or FramePack_F1_I2V_HY."
    needed = (
        "x_embedder.proj.weight",
        "clean_x_embedder.proj.weight",
        "clean_x_embedder.proj_2x.weight",
        "clean_x_embedder.proj_4x.weight",
        "context_embedder.proj_in.weight",
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight",
        "time_text_embed.text_embedder.linear_1.weight",
        "transformer_blocks.0.attn.to_q.weight",
        "single_transformer_blocks.0.proj_mlp.weight",
        "image_projection.up.weight",
        "proj_out.weight",
    )
    all_there(shapes, needed, "a FramePack denoiser", fix)
    patch = tuple(shapes["x_embedder.proj.weight"])
    hidden = patch[0]
    if len(patch) != 5 or patch[2:] != PATCH or hidden % HEAD:
        raise CheckpointError(
            f"This is not a FramePack denoiser: its 'x_embedder.proj.weight' has the shape {patch}, "
            f"where FramePack has (a multiple of {HEAD}, channels, 1, 2, 2).",
            fix=fix,
        )
    return {
        "hidden": hidden,
        "double_depth": depth(shapes, "transformer_blocks."),
        "single_depth": depth(shapes, "single_transformer_blocks."),
        "refiner_depth": depth(shapes, "context_embedder.token_refiner.refiner_blocks."),
        "channels": patch[1],
        "text_dim": shapes["context_embedder.proj_in.weight"][1],
        "pooled_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "image_dim": shapes["image_projection.up.weight"][1],
        "guidance": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
    }
