"""Wan2.1's video autoencoder: causal in time, with the module names of the released file.

The first frame is encoded alone, then groups of four; a latent frame is decoded at a time. What
causal layers remember between chunks lives in a `Stream`, so memory does not grow with length.
Axes: B batch, C channels, F frames, H, W.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from musubi.errors import CheckpointError
from musubi.nn.causal_conv import CausalConv3d, Stream
from musubi.nn.tiling import tiled
from musubi.plugin import Shapes

# Mean and standard deviation of each latent channel over the training set.
MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
WIDTHS = (1, 2, 4, 4)
_WIDE = 1 << 24  # numbers in float32 at once
RESIDUALS = 2
SPATIAL = 8
TEMPORAL = 4


class ChannelNorm(nn.Module):
    """Each cell's channels scaled to root mean square one; computed in float32.

    Args:
        dim: Channels.
        axes: How many axes follow the channels: 3 for video, 2 for pictures.
    """

    def __init__(self, dim: int, axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * axes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B C (F) H W."""
        gamma = x.shape[1] ** 0.5 * self.gamma.float()
        if torch.is_grad_enabled() or x.ndim < 5:
            return (F.normalize(x.float(), dim=1) * gamma).to(x.dtype)
        out = torch.empty_like(x)
        rows = max(1, _WIDE * x.shape[3] // max(1, x[:, :, :1].numel()))
        for frame in range(x.shape[2]):  # a part of a frame at a time exists in float32
            for top in range(0, x.shape[3], rows):
                part = (slice(None), slice(None), slice(frame, frame + 1), slice(top, top + rows))
                torch.mul(F.normalize(x[part].float(), dim=1), gamma, out=out[part])
        return out


class Layers(nn.Sequential):
    """Layers in a row, of which the causal ones are handed the stream."""

    def forward(self, input: torch.Tensor, stream: Stream | None = None) -> torch.Tensor:
        """B C F H W."""
        for layer in self:
            streams = isinstance(layer, CausalConv3d | Residual | Resample)
            input = layer(input, stream) if streams else layer(input)
        return input


class Residual(nn.Module):
    """Two causal convolutions around a shortcut."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.residual = Layers(
            ChannelNorm(in_dim, 3),
            nn.SiLU(inplace=True),
            CausalConv3d(in_dim, out_dim, 3, padding=1),
            ChannelNorm(out_dim, 3),
            nn.SiLU(inplace=True),
            nn.Dropout(0.0),
            CausalConv3d(out_dim, out_dim, 3, padding=1),
        )
        same = in_dim == out_dim
        self.shortcut = nn.Identity() if same else CausalConv3d(in_dim, out_dim, 1)

    def forward(self, x: torch.Tensor, stream: Stream | None = None) -> torch.Tensor:
        """B C F H W."""
        return self.residual(x, stream) + self.shortcut(x)


class FrameAttention(nn.Module):
    """One head of attention among the cells of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B C F H W."""
        batch, height = x.shape[0], x.shape[-2]
        frames = rearrange(x, "b c f h w -> (b f) c h w")
        # The plain kernel, not the user's choice: heads this wide fit few others.
        q, k, v = rearrange(
            self.to_qkv(self.norm(frames)), "n (three c) h w -> three n 1 (h w) c", three=3
        )
        out = F.scaled_dot_product_attention(q, k, v)
        out = self.proj(rearrange(out, "n 1 (h w) c -> n c h w", h=height))
        return x + rearrange(out, "(b f) c h w -> b c f h w", b=batch)


class Resample(nn.Module):
    """Halve or double the picture, and, where `time` says so, the frames after the first.

    Args:
        dim: Channels coming in; going down, as many leave.
        up: Up or down.
        time: Also in time.
        out: Channels that leave going up; half of `dim` when not given.
    """

    def __init__(self, dim: int, *, up: bool, time: bool, out: int | None = None) -> None:
        super().__init__()
        self.up = up
        if up:
            self.resample = nn.Sequential(
                nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact"),
                nn.Conv2d(dim, dim // 2 if out is None else out, 3, padding=1),
            )
        else:
            self.resample = nn.Sequential(
                nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2)
            )
        self.time_conv: nn.Module | None = None
        if time and up:
            self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1))
        elif time:
            self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: torch.Tensor, stream: Stream | None = None) -> torch.Tensor:
        """B C F H W, of which the stream's first chunk holds one frame."""
        stream = stream or Stream()
        if self.up and self.time_conv is not None and not stream.first:
            x = rearrange(self.time_conv(x, stream), "b (two c) f h w -> b c (f two) h w", two=2)
        batch = x.shape[0]
        x = self.resample(rearrange(x, "b c f h w -> (b f) c h w"))
        x = rearrange(x, "(b f) c h w -> b c f h w", b=batch)
        if not self.up and self.time_conv is not None:
            before = stream.recall(self, x)
            stream.keep(self, x[:, :, -1:])
            if before is not None:
                x = self.time_conv(torch.cat([before, x], dim=2))
        return x


class Encoder(nn.Module):
    """Frames to twice the latent channels: mean and log-variance."""

    def __init__(self, dim: int, z_dim: int) -> None:
        super().__init__()
        widths = [dim * w for w in (1, *WIDTHS)]
        self.conv1 = CausalConv3d(3, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, (inner, outer) in enumerate(pairwise(widths)):
            layers += [Residual(inner if i == 0 else outer, outer) for i in range(RESIDUALS)]
            if level < len(WIDTHS) - 1:
                layers.append(Resample(outer, up=False, time=level > 0))
        self.downsamples = Layers(*layers)
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], 2 * z_dim)

    def forward(self, x: torch.Tensor, stream: Stream) -> torch.Tensor:
        """A chunk B 3 F H W to B 2Z f H/8 W/8."""
        x = self.downsamples(self.conv1(x, stream), stream)
        return self.head(self.middle(x, stream), stream)


class Decoder(nn.Module):
    """Latents to frames."""

    def __init__(self, dim: int, z_dim: int) -> None:
        super().__init__()
        widths = [dim * w for w in (WIDTHS[-1], *reversed(WIDTHS))]
        self.conv1 = CausalConv3d(z_dim, widths[0], 3, padding=1)
        self.middle = middle(widths[0])
        layers: list[nn.Module] = []
        for level, (inner, outer) in enumerate(pairwise(widths)):
            inner = inner // 2 if level > 0 else inner  # the upsampler before it halves
            layers += [Residual(inner if i == 0 else outer, outer) for i in range(RESIDUALS + 1)]
            if level < len(WIDTHS) - 1:
                layers.append(Resample(outer, up=True, time=level < 2))
        self.upsamples = Layers(*layers)
        self.head = head(widths[-1], 3)

    def forward(self, x: torch.Tensor, stream: Stream) -> torch.Tensor:
        """A chunk B Z f h w to B 3 F 8h 8w.

        At full resolution the frames of a chunk follow one another: most of the memory is there.
        """
        x = self.middle(self.conv1(x, stream), stream)
        start = max(i for i, layer in enumerate(self.upsamples) if isinstance(layer, Resample))
        x, last = self.upsamples[:start](x, stream), self.upsamples[start:]
        frames = [self.head(last(frame, stream), stream) for frame in x.split(1, dim=2)]
        return torch.cat(frames, dim=2)


def middle(dim: int) -> Layers:
    """The layers at the lowest resolution, of encoder and decoder alike."""
    return Layers(Residual(dim, dim), FrameAttention(dim), Residual(dim, dim))


def head(dim: int, out: int) -> Layers:
    """The last layers of encoder and decoder."""
    return Layers(ChannelNorm(dim, 3), nn.SiLU(inplace=True), CausalConv3d(dim, out, 3, padding=1))


class WanVAE(nn.Module):
    """Frames in [-1, 1] to normalised latents, and back.

    Args:
        dim: Width of the first layer.
        z_dim: Latent channels.
        encoder: Takes the place of Wan2.1's encoder; Wan2.2's has another.
        decoder: Likewise.
        mean: Of each latent channel over the training set.
        std: Likewise.
        patch: Side of the squares of pixels that the encoder takes as channels of one cell.
    """

    def __init__(
        self,
        *,
        dim: int,
        z_dim: int,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder or Encoder(dim, z_dim)
        self.conv1 = CausalConv3d(2 * z_dim, 2 * z_dim, 1)
        self.conv2 = CausalConv3d(z_dim, z_dim, 1)
        self.decoder = decoder or Decoder(dim, z_dim)
        self._mean, self._std, self._patch = mean, std, patch
        self.z_dim, self.spatial = z_dim, SPATIAL * patch

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it computes in."""
        return self.conv1.weight.dtype

    def encode(
        self, frames: torch.Tensor, *, cache_on_host: bool = False, tile: int | None = None
    ) -> torch.Tensor:
        """The posterior's mean, normalised: B Z f h w, float32; h is H/8, and H/16 of Wan2.2's.

        Args:
            frames: B 3 F H W in [-1, 1]; F is 4k + 1, H and W are multiples of 8 (of 16).
            cache_on_host: Keep the feature cache in host memory.
            tile: Side of a spatial tile in pixels, a multiple of 32; None encodes whole frames.
        """
        count, height, width = frames.shape[2:]
        if count % TEMPORAL != 1 or height % self.spatial or width % self.spatial:
            raise ValueError(
                f"{count} frames of {height}x{width} are not 4k+1 of multiples of {self.spatial}"
            )

        def whole(piece: torch.Tensor) -> torch.Tensor:
            stream = Stream(on_host=cache_on_host)
            chunks = []
            for chunk in piece.split([1] + [TEMPORAL] * (count // TEMPORAL), dim=2):
                chunks.append(self.encoder(self._folded(chunk.to(self.dtype)), stream))
                stream.first = False
            return self.conv1(torch.cat(chunks, dim=2)).chunk(2, dim=1)[0]

        if tile is None:
            mean = whole(frames)
        else:
            mean = tiled(
                whole, frames, tile=tile, overlap=tile // 4, scale=Fraction(1, self.spatial)
            )
        shift, scale = self._normalisation(mean.device)
        return (mean.float() - shift) / scale

    def decode(
        self, latents: torch.Tensor, *, cache_on_host: bool = False, tile: int | None = None
    ) -> torch.Tensor:
        """Frames in [-1, 1], B 3 F H W, float32.

        Args:
            latents: Normalised, B Z f h w.
            cache_on_host: Keep the feature cache in host memory.
            tile: Side of a spatial tile in pixels, a multiple of 32; None decodes whole frames.
        """
        if tile is None:
            return torch.cat(list(self.pieces(latents, cache_on_host=cache_on_host)), dim=2)

        def whole(part: torch.Tensor) -> torch.Tensor:
            return torch.cat(list(self._chunks(part, cache_on_host)), dim=2)

        side = tile // self.spatial
        z = self._scaled(latents)
        return tiled(whole, z, tile=side, overlap=side // 4, scale=Fraction(self.spatial))

    def pieces(
        self, latents: torch.Tensor, *, cache_on_host: bool = False
    ) -> Iterator[torch.Tensor]:
        """`decode` without tiles, one latent frame at a time: a long video is never there as a whole."""
        return self._chunks(self._scaled(latents), cache_on_host)

    def _chunks(self, z: torch.Tensor, cache_on_host: bool) -> Iterator[torch.Tensor]:
        stream = Stream(on_host=cache_on_host)
        for chunk in self.conv2(z).split(1, dim=2):
            yield self._unfolded(self.decoder(chunk, stream)).float().clamp_(-1, 1)
            stream.first = False

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        shift, scale = self._normalisation(latents.device)
        return (latents.float() * scale + shift).to(self.dtype)

    def _folded(self, x: torch.Tensor) -> torch.Tensor:
        if self._patch == 1:
            return x
        # Columns change slower than rows, as in the released weights.
        p = self._patch
        return rearrange(x, "b c f (h p) (w q) -> b (c q p) f h w", p=p, q=p)

    def _unfolded(self, x: torch.Tensor) -> torch.Tensor:
        if self._patch == 1:
            return x
        p = self._patch
        return rearrange(x, "b (c q p) f h w -> b c f (h p) (w q)", p=p, q=p)

    def _normalisation(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, len(self._mean), 1, 1, 1)
        return (
            torch.tensor(self._mean, device=device).view(shape),
            torch.tensor(self._std, device=device).view(shape),
        )


def infer(shapes: Shapes) -> dict[str, int]:
    """Sizes of a Wan2.1 VAE, from our names and shapes.

    Raises:
        CheckpointError: It is something else.
    """
    needed = ("encoder.conv1.weight", "conv1.weight", "conv2.weight", "decoder.conv1.weight")
    absent = next((name for name in needed if name not in shapes), None)
    fix = "Give --vae Wan2.1_VAE.pth or wan_2.1_vae.safetensors."
    if absent is not None:
        raise CheckpointError(f"This is not a Wan VAE: it has no tensor {absent!r}.", fix=fix)
    dim, z_dim = shapes["encoder.conv1.weight"][0], shapes["conv2.weight"][0]
    if z_dim != len(MEAN) or len(shapes["encoder.conv1.weight"]) != 5:
        raise CheckpointError(
            f"This is not Wan2.1's VAE: its latents have {z_dim} channels, where Wan2.1's have "
            f"{len(MEAN)}.",
            fix=fix,
        )
    return {"dim": dim, "z_dim": z_dim}
