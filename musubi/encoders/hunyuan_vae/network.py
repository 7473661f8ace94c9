"""HunyuanVideo's video autoencoder: causal in time, with the module names of the released file.

Its group norms look at all frames at once, so it cannot be streamed a chunk at a time; memory is
bounded by tiles in space and windows in time, which change the result a little, and by convolving
a few columns at a time, which does not. Axes: B batch, C channels, F frames, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from musubi.errors import CheckpointError
from musubi.nn.tiling import tiled, windowed
from musubi.plugin import Shapes

SCALING = 0.476986  # latents times this have variance one
SPATIAL = 8
TEMPORAL = 4
LEVELS = 4
RESIDUALS = 2
GROUPS = 32
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """In what pieces a video is worked on; None: whole.

    Args:
        tile: Side of a spatial tile in pixels, a multiple of 32. Neighbours share a quarter.
        window: Frames of a temporal window, a multiple of 16. Neighbours share a quarter.
        columns: Columns that a convolution takes at once.
    """

    tile: int | None = None
    window: int | None = None
    columns: int | None = None


WHOLE = Pieces()


class CausalConv(nn.Module):
    """A 3D convolution that sees no later frame: edges are repeated, in time to the left only."""

    def __init__(
        self, in_dim: int, out_dim: int, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_dim, out_dim, kernel, stride)
        side = kernel // 2
        self._padding = (side, side, side, side, kernel - 1, 0)

    def forward(self, x: torch.Tensor, columns: int | None = None) -> torch.Tensor:
        """B C F H W; `columns` of it at a time, so that its edges are never repeated as a whole."""
        columns_here = x.shape[-1]
        if columns is None or columns_here < 1.5 * columns:
            return self.conv(F.pad(x, self._padding, mode="replicate"))
        kernel, stride = self.conv.kernel_size[2], self.conv.stride[2]
        side, *rest = self._padding[1:]
        width = (columns_here + 2 * side - kernel) // stride + 1
        each = max(columns // stride, 1)
        out = x.new_empty(0)
        for start in range(0, width, each):
            end = min(start + each, width)
            low, high = start * stride - side, (end - 1) * stride + kernel - side
            left, right = max(0, -low), max(0, high - columns_here)
            piece = x[..., low + left : high - right]
            made = self.conv(F.pad(piece, (left, right, *rest), mode="replicate"))
            if start == 0:
                out = made.new_empty(*made.shape[:-1], width)
            out[..., start:end] = made
        return out


class Residual(nn.Module):
    """Two causal convolutions around a shortcut."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, in_dim, eps=EPS)
        self.conv1 = CausalConv(in_dim, out_dim)
        self.norm2 = nn.GroupNorm(GROUPS, out_dim, eps=EPS)
        self.conv2 = CausalConv(out_dim, out_dim)
        self.conv_shortcut = CausalConv(in_dim, out_dim, 1) if in_dim != out_dim else None

    def forward(self, x: torch.Tensor, columns: int | None) -> torch.Tensor:
        """B C F H W."""
        inner = self.conv1(F.silu(self.norm1(x)), columns)
        inner = self.conv2(F.silu(self.norm2(inner)), columns)
        return inner + (x if self.conv_shortcut is None else self.conv_shortcut(x, columns))


class Attention(nn.Module):
    """One head of attention; a cell sees those of its own frame and of earlier ones."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, dim, eps=EPS)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B C F H W."""
        frames, height = x.shape[2:4]
        cells = rearrange(self.group_norm(x), "b c f h w -> b 1 (f h w) c")
        q, k, v = self.to_q(cells), self.to_k(cells), self.to_v(cells)
        # Frame by frame over what it may see: no mask, which would be quadratic in the video. The
        # plain kernel, not the user's choice: heads this wide fit few others.
        each = q.shape[2] // frames
        seen = [
            F.scaled_dot_product_attention(
                q[:, :, i * each : (i + 1) * each],
                k[:, :, : (i + 1) * each],
                v[:, :, : (i + 1) * each],
            )
            for i in range(frames)
        ]
        out = self.to_out[0](torch.cat(seen, dim=2))
        return x + rearrange(out, "b 1 (f h w) c -> b c f h w", f=frames, h=height)


class Middle(nn.Module):
    """Attention between two residual blocks, at the coarsest level."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Residual(dim, dim) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(dim)])

    def forward(self, x: torch.Tensor, columns: int | None) -> torch.Tensor:
        """B C F H W."""
        x = self.resnets[0](x, columns)
        return self.resnets[1](self.attentions[0](x), columns)


class Down(nn.Module):
    """Halve the picture and, where `time` says so, the frames after the first."""

    def __init__(self, dim: int, time: bool) -> None:
        super().__init__()
        self.conv = CausalConv(dim, dim, stride=(2 if time else 1, 2, 2))

    def forward(self, x: torch.Tensor, columns: int | None) -> torch.Tensor:
        """B C F H W."""
        return self.conv(x, columns)


class Up(nn.Module):
    """Double the picture and, where `time` says so, the frames after the first."""

    def __init__(self, dim: int, time: bool) -> None:
        super().__init__()
        self.time = time
        self.conv = CausalConv(dim, dim)

    def forward(self, x: torch.Tensor, columns: int | None) -> torch.Tensor:
        """B C F H W."""
        if self.time and x.shape[2] > 1:
            x = torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(2, dim=2)], dim=2)
        x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        return self.conv(x, columns)


class Level(nn.Module):
    """Residual blocks of one width, and a change of size behind them."""

    def __init__(
        self, in_dim: int, out_dim: int, count: int, *, down: nn.Module | None, up: nn.Module | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [Residual(in_dim if i == 0 else out_dim, out_dim) for i in range(count)]
        )
        self.downsamplers = nn.ModuleList([down]) if down is not None else None
        self.upsamplers = nn.ModuleList([up]) if up is not None else None

    def forward(self, x: torch.Tensor, columns: int | None) -> torch.Tensor:
        """B C F H W."""
        for block in (*self.resnets, *(self.downsamplers or ()), *(self.upsamplers or ())):
            x = block(x, columns)
        return x


class Encoder(nn.Module):
    """Frames to twice the latent channels: mean and log-variance."""

    def __init__(self, widths: tuple[int, ...], z_dim: int) -> None:
        super().__init__()
        self.conv_in = CausalConv(3, widths[0])
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            down = Down(width, time=i > 0) if i < LEVELS - 1 else None
            before = widths[max(i - 1, 0)]
            self.down_blocks.append(Level(before, width, RESIDUALS, down=down, up=None))
        self.mid_block = Middle(widths[-1])
        self.conv_norm_out = nn.GroupNorm(GROUPS, widths[-1], eps=EPS)
        self.conv_out = CausalConv(widths[-1], 2 * z_dim)

    def forward(self, x: torch.Tensor, columns: int | None) -> torch.Tensor:
        """B 3 F H W to B 2Z f H/8 W/8."""
        x = self.conv_in(x, columns)
        for block in (*self.down_blocks, self.mid_block):
            x = block(x, columns)
        return self.conv_out(F.silu(self.conv_norm_out(x)), columns)


class Decoder(nn.Module):
    """Latents to frames."""

    def __init__(self, widths: tuple[int, ...], z_dim: int) -> None:
        super().__init__()
        rising = widths[::-1]
        self.conv_in = CausalConv(z_dim, rising[0])
        self.mid_block = Middle(rising[0])
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(rising):
            up = Up(width, time=i > 0) if i < LEVELS - 1 else None
            before = rising[max(i - 1, 0)]
            self.up_blocks.append(Level(before, width, RESIDUALS + 1, down=None, up=up))
        self.conv_norm_out = nn.GroupNorm(GROUPS, rising[-1], eps=EPS)
        self.conv_out = CausalConv(rising[-1], 3)

    def forward(self, x: torch.Tensor, columns: int | None) -> torch.Tensor:
        """B Z f h w to B 3 F 8h 8w."""
        x = self.conv_in(x, columns)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, columns)
        return self.conv_out(F.silu(self.conv_norm_out(x)), columns)


class HunyuanVideoVAE(nn.Module):
    """Frames in [-1, 1] to latents as the network gives them, not scaled, and back.

    Args:
        widths: Channels of the four levels, finest first; multiples of 32.
        z_dim: Latent channels.
    """

    def __init__(self, *, widths: tuple[int, ...], z_dim: int) -> None:
        super().__init__()
        self.encoder = Encoder(widths, z_dim)
        self.decoder = Decoder(widths, z_dim)
        self.quant_conv = nn.Conv3d(2 * z_dim, 2 * z_dim, 1)
        self.post_quant_conv = nn.Conv3d(z_dim, z_dim, 1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it computes in."""
        return self.quant_conv.weight.dtype

    def encode(
        self,
        frames: torch.Tensor,
        *,
        pieces: Pieces = WHOLE,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """The posterior's mean, or a sample of it: B 16 f H/8 W/8, float32, not scaled.

        Args:
            frames: B 3 F H W in [-1, 1]; F is 4k + 1, H and W are multiples of 8.
            pieces: How to save memory.
            generator: On the CPU: draw a sample with it. None gives the mean.
        """
        count, height, width = frames.shape[2:]
        if count % TEMPORAL != 1 or height % SPATIAL or width % SPATIAL:
            raise ValueError(f"{count} frames of {height}x{width} are not 4k+1 of multiples of 8")

        def whole(piece: torch.Tensor) -> torch.Tensor:
            return self.quant_conv(self.encoder(piece.to(self.dtype), pieces.columns)).float()

        mean, spread = _joined(whole, frames, pieces, encoding=True).chunk(2, dim=1)
        if generator is None:
            return mean
        deviation = spread.clamp(-30, 20).mul(0.5).exp()
        return mean + deviation * torch.randn(mean.shape, generator=generator).to(mean.device)

    def decode(self, latents: torch.Tensor, *, pieces: Pieces = WHOLE) -> torch.Tensor:
        """Frames in [-1, 1], B 3 F H W, float32.

        Args:
            latents: Not scaled, B 16 f h w.
            pieces: How to save memory.
        """

        def whole(piece: torch.Tensor) -> torch.Tensor:
            z = self.post_quant_conv(piece.to(self.dtype))
            return self.decoder(z, pieces.columns).float()

        return _joined(whole, latents, pieces, encoding=False).clamp_(-1, 1)


def _joined(apply, x: torch.Tensor, pieces: Pieces, *, encoding: bool) -> torch.Tensor:
    """`apply` over windows in time, and over tiles in each."""
    cells, steps = (1, 1) if encoding else (SPATIAL, TEMPORAL)
    space = Fraction(1, SPATIAL) if encoding else Fraction(SPATIAL)
    time = Fraction(1, TEMPORAL) if encoding else Fraction(TEMPORAL)

    def in_space(frames: torch.Tensor) -> torch.Tensor:
        if pieces.tile is None:
            return apply(frames)
        side = pieces.tile // cells
        return tiled(apply, frames, tile=side, overlap=side // 4, scale=space)

    if pieces.window is None:
        return in_space(x)
    length = pieces.window // steps
    return windowed(in_space, x, window=length, overlap=length // 4, scale=time)


def infer(shapes: Shapes) -> dict[str, object]:
    """Sizes of a HunyuanVideo VAE, from our names and shapes.

    Raises:
        CheckpointError: It is something else.
    """
    fix = "Give --vae HunyuanVideo's pytorch_model.pt or hunyuan_video_vae_bf16.safetensors."
    levels = [f"encoder.down_blocks.{i}.resnets.0.conv1.conv.weight" for i in range(LEVELS)]
    needed = (*levels, "quant_conv.weight", "post_quant_conv.weight", "decoder.conv_in.conv.weight")
    absent = next((name for name in needed if name not in shapes), None)
    if absent is not None:
        raise CheckpointError(
            f"This is not a HunyuanVideo VAE: it has no tensor {absent!r}.", fix=fix
        )
    widths, z_dim = tuple(shapes[name][0] for name in levels), shapes["post_quant_conv.weight"][0]
    if any(width % GROUPS for width in widths) or z_dim != 16:
        raise CheckpointError(
            f"This is not HunyuanVideo's VAE: its latents have {z_dim} channels and its levels "
            f"{', '.join(map(str, widths))}.",
            fix=fix,
        )
    return {"widths": widths, "z_dim": z_dim}
