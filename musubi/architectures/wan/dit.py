"""Wan's denoiser, with the module names of the released checkpoints.

Axes: B batch, C channels, F frames, H, W (latent cells), L video tokens, T text tokens, D width,
G groups of tokens that share a time: 1, or as many as frames.
Wan et al., https://arxiv.org/abs/2503.20314. Order of reading: `WanDiT.forward`, then `Block`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from musubi.architectures.wan.image import FEATURES, ImageEmbedding
from musubi.errors import CheckpointError
from musubi.nn import rope
from musubi.nn.attention import attention
from musubi.nn.linear import PatchEmbedding, PreciseLinear
from musubi.nn.norm import LayerNorm, RMSNorm, gated, modulated
from musubi.plugin import Shapes

HEAD = 128
PATCH = (1, 2, 2)
TEXT_TOKENS = 512
THETA = 10000.0
# Of a head's 128 dimensions 44 turn with time, 42 with height, 42 with width.
ROPE_SIZES = (HEAD - 4 * (HEAD // 6), 2 * (HEAD // 6), 2 * (HEAD // 6))


class SelfAttention(nn.Module):
    """Attention among video tokens; queries and keys are normalised over all heads at once."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim)
        self.norm_k = RMSNorm(dim)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """B L D in and out; the tables are (L, 64)."""
        q = rope.rotate(_heads(self.norm_q(self.q(x))), cos, sin)
        k = rope.rotate(_heads(self.norm_k(self.k(x))), cos, sin)
        return self.o(attention(q, k, _heads(self.v(x))).flatten(2))


class CrossAttention(nn.Module):
    """Attention to the text, and, where the checkpoint has it, to image tokens beside it."""

    def __init__(self, dim: int, *, image: bool) -> None:
        super().__init__()
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim)
        self.norm_k = RMSNorm(dim)
        if image:
            self.k_img = nn.Linear(dim, dim)
            self.v_img = nn.Linear(dim, dim)
            self.norm_k_img = RMSNorm(dim)

    def forward(
        self, x: torch.Tensor, text: torch.Tensor, image: torch.Tensor | None = None
    ) -> torch.Tensor:
        """B L D in and out; text is B T D, image B I D."""
        q = _heads(self.norm_q(self.q(x)))
        out = attention(q, _heads(self.norm_k(self.k(text))), _heads(self.v(text)))
        if image is not None:
            k = _heads(self.norm_k_img(self.k_img(image)))
            out = out + attention(q, k, _heads(self.v_img(image)))
        return self.o(out.flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; the first and last gated by the time.

    Modulation and residual sums are float32 inside; between blocks tokens have the compute dtype.
    """

    def __init__(self, dim: int, ffn_dim: int, *, image: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim)
        self.norm3 = LayerNorm(dim, eps=1e-6)
        self.cross_attn = CrossAttention(dim, image=image)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        x: torch.Tensor,
        e: torch.Tensor,
        text: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        image: torch.Tensor | None = None,
        hint: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens B L D in and out.

        Args:
            x: Video tokens.
            e: The time, B 6 D, float32: shift, scale and gate of attention, then of feed-forward;
                B G 6 D where groups of tokens have times of their own.
            text: B T D.
            cos: (L, 64).
            sin: (L, 64).
            image: B I D.
            hint: What a control block adds behind this block, B L D. A cache of steps that leaves the
                blocks out then has it in what they added, and nobody adds it again.
        """
        shift, scale, gate, shift2, scale2, gate2 = (self.modulation.float() + e).chunk(6, dim=-2)
        y = self.self_attn(_modulated(x, shift, scale, dtype=x.dtype), cos, sin)
        x = _gated(x, y, gate)
        x = x + self.cross_attn(self.norm3(x), text, image).to(x.dtype)
        y = self.ffn(_modulated(x, shift2, scale2, dtype=x.dtype))
        x = _gated(x, y, gate2)
        return x if hint is None else x + hint


class ControlBlock(Block):
    """A block of VACE's (https://arxiv.org/abs/2503.07598): it reads the control tokens as a block
    reads the video's, and makes of them what is added to the video behind one of the blocks.
    """

    def __init__(self, dim: int, ffn_dim: int, *, image: bool, first: bool) -> None:
        super().__init__(dim, ffn_dim, image=image)
        if first:
            self.before_proj = nn.Linear(dim, dim)
        self.after_proj = nn.Linear(dim, dim)

    def forward(  # type: ignore[override]
        self, state: torch.Tensor, tokens: torch.Tensor, *shared: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The hint, and the control tokens for the next; all B L D.

        Args:
            state: Control tokens.
            tokens: Video tokens, before the first block.
            shared: The time, the text, positions and image, as for `Block`.
        """
        if hasattr(self, "before_proj"):
            state = self.before_proj(state) + tokens
        state = super().forward(state, *shared)
        return self.after_proj(state), state


class Head(nn.Module):
    """Tokens to patches of velocity, float32."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.head = PreciseLinear(dim, out)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """B L D and the time embedding B D (or B G D) to B L (patch · channels)."""
        shift, scale = (self.modulation.float() + e.unsqueeze(-2)).chunk(2, dim=-2)
        return self.head(_modulated(x, shift, scale))


class WanDiT(nn.Module):
    """The velocity of latents at a time, given text and whatever the task adds.

    Args:
        family: "i2v" has an image embedding, "flf2v" also positions for two images, "t2v" neither.
        dim: Width; a multiple of 128, the head size.
        ffn_dim: Width of the feed-forward layers.
        num_layers: Number of blocks.
        in_dim: Channels of the latents and of what is joined to them.
        out_dim: Channels of the velocity.
        text_dim: Width of the text encoder.
        freq_dim: Width of the sinusoidal time embedding.
        image_dim: Width of the image features.
        reference: Whether a reference image can stand before the video (Fun-Control 1.1).
        vace_layers: Number of control blocks beside the blocks (VACE); 0 where there are none.
        vace_dim: Channels of what the control blocks read; VACE's are 96.
    """

    def __init__(  # noqa: PLR0913 - one for each size that a file shows
        self,
        *,
        family: str,
        dim: int,
        ffn_dim: int,
        num_layers: int,
        in_dim: int,
        out_dim: int,
        text_dim: int,
        freq_dim: int,
        image_dim: int = FEATURES,
        reference: bool = False,
        vace_layers: int = 0,
        vace_dim: int = 0,
    ) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        image = family != "t2v"
        self.patch_embedding = PatchEmbedding(in_dim, dim, PATCH)
        self.text_embedding = nn.Sequential(
            nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            PreciseLinear(freq_dim, dim), nn.SiLU(), PreciseLinear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), PreciseLinear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(dim, ffn_dim, image=image) for _ in range(num_layers))
        self.head = Head(dim, PATCH[0] * PATCH[1] * PATCH[2] * out_dim)
        if image:
            self.img_emb = ImageEmbedding(dim, image_dim, positions=family == "flf2v")
        if reference:
            self.ref_conv = nn.Conv2d(out_dim, dim, PATCH[1:], stride=PATCH[1:])
        if vace_layers:
            self.vace_patch_embedding = PatchEmbedding(vace_dim, dim, PATCH)
            self.vace_blocks = nn.ModuleList(
                ControlBlock(dim, ffn_dim, image=image, first=number == 0)
                for number in range(vace_layers)
            )
            self._every = -(-num_layers // vace_layers)
        self._tables = rope.Tables(ROPE_SIZES, theta=THETA)

    def forward(  # noqa: PLR0913 - each task brings its own
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        text: Sequence[torch.Tensor] | torch.Tensor,
        *,
        joined: torch.Tensor | None = None,
        clip: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
        control: torch.Tensor | None = None,
        control_scale: float = 1.0,
        frame_positions: Sequence[int] | None = None,
        skip: Collection[int] = (),
    ) -> torch.Tensor:
        """The velocity, float32, shaped like `x` (B C F H W).

        Args:
            x: Noisy latents, B C F H W, H and W even.
            t: (B,), 0 clean to 1 noise; or (B, F), a time for each latent frame.
            text: One (T, D) a sample, or B T D; padded with zeros to 512 tokens, which the model
                was trained to attend to.
            joined: What the task puts beside the latents along the channels, B C' F H W.
            clip: Image features, B I 1280, for checkpoints with an image embedding.
            reference: Latents of a reference image, B C H W; it comes before the video in time.
            control: What the control blocks read, B C'' F H W, for checkpoints that have some.
            control_scale: Weight of what the control blocks add.
            frame_positions: The time position of each latent frame; None counts from 0.
            skip: Numbers of blocks to leave out (skip-layer guidance).
        """
        _, _, frames, height, width = x.shape
        if height % PATCH[1] or width % PATCH[2]:
            raise ValueError(f"latents of {height}x{width} cells do not split into 2x2 patches")
        # Some 8-bit files keep other layers wider than their products; this one never is, and it
        # is neither streamed nor stored in 8 bits.
        dtype = self.text_embedding.get_parameter("2.weight").dtype
        if joined is not None:
            x = torch.cat([x, joined.to(x.dtype)], dim=1)
        tokens = self.patch_embedding(x).to(dtype)
        positions = frame_positions or range(frames)
        before = 0
        if reference is not None:
            first = self.ref_conv(reference.to(self.ref_conv.weight.dtype)).to(dtype)
            tokens = torch.cat([first.flatten(2).transpose(1, 2), tokens], dim=1)
            before = tokens.shape[1] // (frames + 1)
            positions = [0, *(p + 1 for p in positions)]
        time = self.time_embedding(sinusoid(t, self.freq_dim))
        e = self.time_projection(time).unflatten(-1, (6, -1))
        words = self.text_embedding(_padded(text, dtype)).to(dtype)
        image = None if clip is None else self.img_emb(clip).to(dtype)
        axes = (positions, range(height // PATCH[1]), range(width // PATCH[2]))
        shared = (e, words, *self._tables(axes, x.device), image)
        hints = {n: h * control_scale for n, h in self._hints(control, tokens, shared).items()}
        for number, block in enumerate(self.blocks):
            hint = hints.get(number)
            if number not in skip:
                tokens = block(tokens, *shared, hint)
            elif hint is not None:
                tokens = tokens + hint
        return rearrange(
            self.head(tokens[:, before:], time),
            "b (f h w) (p q r c) -> b c (f p) (h q) (w r)",
            f=frames // PATCH[0],
            h=height // PATCH[1],
            w=width // PATCH[2],
            p=PATCH[0],
            q=PATCH[1],
            r=PATCH[2],
        )

    def _hints(
        self, control: torch.Tensor | None, tokens: torch.Tensor, shared: tuple[Any, ...]
    ) -> dict[int, torch.Tensor]:
        """What the control blocks add: number of a block → B L D, added behind it."""
        if control is None:
            return {}
        state = self.vace_patch_embedding(control).to(tokens.dtype)
        hints: dict[int, torch.Tensor] = {}
        for number, block in enumerate(self.vace_blocks):
            hint, state = block(state, tokens, *shared)
            hints[number * self._every] = hint
        return hints


def _modulated(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """B L D with a shift and a scale B 1 D, or B G 1 D for each group of tokens."""
    if shift.ndim == x.ndim:
        return modulated(x, shift, scale, dtype=dtype)
    groups = x.unflatten(1, (shift.shape[1], -1))
    return modulated(groups, shift, scale, dtype=dtype).flatten(1, 2)


def _gated(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """X + y gate, summed in float32; the gate is B 1 D, or B G 1 D."""
    if gate.ndim == x.ndim:
        return gated(x, y, gate)
    groups = (gate.shape[1], -1)
    return gated(x.unflatten(1, groups), y.unflatten(1, groups), gate).flatten(1, 2)


def sinusoid(t: torch.Tensor, dim: int) -> torch.Tensor:
    """Cosines, then sines, of the timestep 1000 t at `dim / 2` frequencies: (…, dim), float32.

    In float64, as the reference does it: at 1000, float32 is off by 8e-6. `t` itself, being
    float32, holds 1000 t only to 3e-5; rounding to 1e-4 gives back the whole timesteps that
    solvers take, exactly.
    """
    timestep = (t.double() * 1000).round(decimals=4)
    exponents = torch.arange(dim // 2, dtype=torch.float64, device=t.device) / (dim // 2)
    angles = timestep.unsqueeze(-1) * THETA**-exponents
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def _heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(2, (-1, HEAD))


def _padded(text: Sequence[torch.Tensor] | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([F.pad(one.to(dtype), (0, 0, 0, TEXT_TOKENS - len(one))) for one in text])


def infer(shapes: Shapes) -> dict[str, Any]:
    """Sizes and task family of a Wan denoiser, from our names and shapes.

    Raises:
        CheckpointError: It is something else.
    """
    needed = (
        "patch_embedding.weight",
        "text_embedding.0.weight",
        "time_embedding.0.weight",
        "head.head.weight",
        "blocks.0.modulation",
        "blocks.0.self_attn.norm_q.weight",
        "blocks.0.cross_attn.q.weight",
        "blocks.0.ffn.0.weight",
    )
    absent = next((name for name in needed if name not in shapes), None)
    if absent is not None:
        raise CheckpointError(
            f"This is not a Wan denoiser: it has no tensor {absent!r}.",
            fix="Give --dit a Wan2.1 diffusion model, such as wan2.1_t2v_1.3B_bf16.safetensors.",
        )
    patch = tuple(shapes["patch_embedding.weight"])
    dim = patch[0]
    if len(patch) != 5 or patch[2:] != PATCH or dim % HEAD:
        raise CheckpointError(
            f"This is not a Wan denoiser: its 'patch_embedding.weight' has the shape {patch}, where "
            f"Wan has (a multiple of {HEAD}, channels, 1, 2, 2).",
            fix="Give --dit a Wan2.1 diffusion model.",
        )
    family = "t2v"
    if "img_emb.proj.1.weight" in shapes:
        family = "flf2v" if "img_emb.emb_pos" in shapes else "i2v"
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    control = {name.split(".")[1] for name in shapes if name.startswith("vace_blocks.")}
    found: dict[str, Any] = {}
    if family != "t2v":
        found["image_dim"] = shapes["img_emb.proj.1.weight"][1]
    return {
        **found,
        "family": family,
        "dim": dim,
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "num_layers": len(blocks),
        "in_dim": patch[1],
        "out_dim": shapes["head.head.weight"][0] // (PATCH[0] * PATCH[1] * PATCH[2]),
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "reference": "ref_conv.weight" in shapes,
        "vace_layers": len(control),
        "vace_dim": shapes["vace_patch_embedding.weight"][1] if control else 0,
    }
