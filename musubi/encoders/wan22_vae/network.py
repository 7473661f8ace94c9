"""Wan2.2's video autoencoder: Wan2.1's layers, with a shortcut around each level.

One latent cell stands for 4 frames of 16x16 pixels; pixels enter as squares of 2x2.
Wan et al., https://arxiv.org/abs/2503.20314, and the code of Wan2.2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import nn

from musubi.encoders.wan_vae.network import (
    RESIDUALS,
    WIDTHS,
    Layers,
    Resample,
    Residual,
    WanVAE,
    head,
    middle,
)
from musubi.errors import CheckpointError
from musubi.nn.causal_conv import CausalConv3d, Stream
from musubi.plugin import Shapes

# Mean and standard deviation of each latent channel over the training set.
MEAN = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
    *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
    *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
    *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
    *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
STD = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
    *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
    *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
    *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
    *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)
PATCH = 2
PIXELS = 3 * PATCH * PATCH
TIME = (False, True, True)
"""Which of the encoder's levels also halve the frames; the decoder doubles them in reverse."""


class DownLevel(nn.Module):
    """Residual blocks and a downsampler, beside which the input is averaged over cells.

    Args:
        in_dim: Channels coming in.
        out_dim: Channels going out.
        time: Halve the frames too.
        down: Halve anything; the last level does not.
    """

    def __init__(self, in_dim: int, out_dim: int, *, time: bool, down: bool) -> None:
        super().__init__()
        self.factor = (2 if time else 1, 2 if down else 1)
        self.out_dim = out_dim
        layers: list[nn.Module] = [
            Residual(in_dim if i == 0 else out_dim, out_dim) for i in range(RESIDUALS)
        ]
        if down:
            layers.append(Resample(out_dim, up=False, time=time))
        self.downsamples = Layers(*layers)

    def forward(self, x: torch.Tensor, stream: Stream) -> torch.Tensor:
        """A chunk B C F H W."""
        return self.downsamples(x, stream) + self._averaged(x)

    def _averaged(self, x: torch.Tensor) -> torch.Tensor:
        t, s = self.factor
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % t, 0))  # the first frame is alone
        x = rearrange(x, "b c (f t) (h p) (w q) -> b (c t p q) f h w", t=t, p=s, q=s)
        return reduce(x, "b (o g) f h w -> b o f h w", "mean", o=self.out_dim)


class UpLevel(nn.Module):
    """Residual blocks and an upsampler, beside which the input is repeated over cells.

    Args:
        in_dim: Channels coming in.
        out_dim: Channels going out.
        time: Double the frames too.
        up: Double anything; the last level does not, and has no shortcut.
    """

    def __init__(self, in_dim: int, out_dim: int, *, time: bool, up: bool) -> None:
        super().__init__()
        self.factor = (2 if time else 1, 2) if up else None
        self.out_dim = out_dim
        layers: list[nn.Module] = [
            Residual(in_dim if i == 0 else out_dim, out_dim) for i in range(RESIDUALS + 1)
        ]
        if up:
            layers.append(Resample(out_dim, up=True, time=time, out=out_dim))
        self.upsamples = Layers(*layers)

    def forward(self, x: torch.Tensor, stream: Stream) -> torch.Tensor:
        """A chunk B C F H W."""
        y = self.upsamples(x, stream)
        return y if self.factor is None else y + self._repeated(x, self.factor, stream)

    def _repeated(self, x: torch.Tensor, factor: tuple[int, int], stream: Stream) -> torch.Tensor:
        t, s = factor
        x = x.repeat_interleave(self.out_dim * t * s * s // x.shape[1], dim=1)
        x = rearrange(x, "b (o t p q) f h w -> b o (f t) (h p) (w q)", t=t, p=s, q=s)
        return x[:, :, t - 1 :] if stream.first else x


class Encoder(nn.Module):
    """Frames, folded into cells of 2x2 pixels, to twice the latent channels."""

    def __init__(self, dim: int, z_dim: int) -> None:
        super().__init__()
        widths = [dim * w for w in (1, *WIDTHS)]
        self.conv1 = CausalConv3d(PIXELS, widths[0], 3, padding=1)
        last = len(WIDTHS) - 1
        self.downsamples = nn.ModuleList(
            DownLevel(inner, outer, time=level < last and TIME[level], down=level < last)
            for level, (inner, outer) in enumerate(pairwise(widths))
        )
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], 2 * z_dim)

    def forward(self, x: torch.Tensor, stream: Stream) -> torch.Tensor:
        """A chunk B 12 F H/2 W/2 to B 2Z f H/16 W/16."""
        x = self.conv1(x, stream)
        for level in self.downsamples:
            x = level(x, stream)
        return self.head(self.middle(x, stream), stream)


class Decoder(nn.Module):
    """Latents to frames, folded into cells of 2x2 pixels."""

    def __init__(self, dim: int, z_dim: int) -> None:
        super().__init__()
        widths = [dim * w for w in (WIDTHS[-1], *reversed(WIDTHS))]
        self.conv1 = CausalConv3d(z_dim, widths[0], 3, padding=1)
        self.middle = middle(widths[0])
        last = len(WIDTHS) - 1
        self.upsamples = nn.ModuleList(
            UpLevel(inner, outer, time=level < last and TIME[last - 1 - level], up=level < last)
            for level, (inner, outer) in enumerate(pairwise(widths))
        )
        self.head = head(widths[-1], PIXELS)

    def forward(self, x: torch.Tensor, stream: Stream) -> torch.Tensor:
        """A chunk B Z f h w to B 12 F 8h 8w."""
        x = self.middle(self.conv1(x, stream), stream)
        for level in self.upsamples:
            x = level(x, stream)
        return self.head(x, stream)


def build(*, dim: int, decoder_dim: int, z_dim: int) -> WanVAE:
    """The autoencoder; its decoder is wider than its encoder.

    Args:
        dim: Width of the encoder's first layer.
        decoder_dim: Width of the decoder's last layer.
        z_dim: Latent channels.
    """
    return WanVAE(
        dim=dim,
        z_dim=z_dim,
        encoder=Encoder(dim, z_dim),
        decoder=Decoder(decoder_dim, z_dim),
        mean=MEAN,
        std=STD,
        patch=PATCH,
    )


def infer(shapes: Shapes) -> dict[str, int]:
    """Sizes of a Wan2.2 VAE, from our names and shapes.

    Raises:
        CheckpointError: It is something else.
    """
    needed = (
        "encoder.conv1.weight",
        "encoder.downsamples.0.downsamples.0.residual.2.weight",
        "conv2.weight",
        "decoder.head.0.gamma",
    )
    fix = "Give --vae Wan2.2_VAE.pth or wan2.2_vae.safetensors."
    absent = next((name for name in needed if name not in shapes), None)
    if absent is not None:
        raise CheckpointError(f"This is not Wan2.2's VAE: it has no tensor {absent!r}.", fix=fix)
    z_dim = shapes["conv2.weight"][0]
    if z_dim != len(MEAN):
        raise CheckpointError(
            f"This is not Wan2.2's VAE: its latents have {z_dim} channels, where Wan2.2's have "
            f"{len(MEAN)}.",
            fix=fix,
        )
    return {
        "dim": shapes["encoder.conv1.weight"][0],
        "decoder_dim": shapes["decoder.head.0.gamma"][0],
        "z_dim": z_dim,
    }
