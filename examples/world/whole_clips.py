"""The tiny autoencoder on whole clips at once, by two-dimensional convolutions.

What encode and decode do chunk by chunk is done in one pass, frames beside the batch: past frames
are channels of a convolution, so that kernels for pictures do the work. A single frame costs a
picture's convolutions, no more. tests/demo/test_whole_clips.py holds it against encode and decode.
Axes: B batch, C channels, F frames, H, W; N is B·F.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class WholeClips:
    """Both halves of an autoencoder.

    Args:
        vae: Whose modules these are; its parameters are used where they are.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.parts: Any = sys.modules[type(vae).__module__]

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """B 3 F H W in [-1, 1] to the mean as the network gives it, B Z f h w."""
        x, count = self._half(self.vae.encoder, *_flat(frames))
        mean = self._convolve(self.vae.conv1, x, count).chunk(2, dim=1)[0]
        return _deep(mean, count)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """The same to B 3 F H W."""
        x, count = _flat(z)
        return _deep(*self._half(self.vae.decoder, self._convolve(self.vae.conv2, x, count), count))

    def _half(self, half: nn.Module, x: torch.Tensor, count: int) -> tuple[torch.Tensor, int]:
        for layer in half.children():
            x, count = self._run(layer, x, count)
        return x, count

    def _run(self, layer: Any, x: torch.Tensor, count: int) -> tuple[torch.Tensor, int]:
        parts = self.parts
        if isinstance(layer, parts.Layers):
            return self._half(layer, x, count)
        if isinstance(layer, parts.Residual):
            beside = self._run(layer.shortcut, x, count)[0]
            return self._half(layer.residual, x, count)[0] + beside, count
        if isinstance(layer, parts.Resample):
            return (_up if layer.up else _down)(layer, x, count)
        if isinstance(layer, parts.FrameAttention):
            return layer(x[:, :, None])[:, :, 0], count
        if isinstance(layer, nn.Conv3d):
            return self._convolve(layer, x, count), count
        if isinstance(layer, parts.ChannelNorm):
            return _scaled(x, layer.gamma), count
        return layer(x), count

    def _convolve(self, layer: nn.Conv3d, x: torch.Tensor, count: int) -> torch.Tensor:
        past = layer.kernel_size[0] - 1
        return F.conv2d(
            _with_past(x, count, past) if count > 1 else x,
            _flat_weight(layer, past if count == 1 else 0),
            layer.bias,
            padding=layer.padding[1:],
        )


def _up(layer: Any, x: torch.Tensor, count: int) -> tuple[torch.Tensor, int]:
    if layer.time_conv is not None and count > 1:
        later = _deep(x, count)[:, :, 1:]
        batch, channels, rest, height, width = later.shape
        flat = _flat(later)[0]
        both = F.conv2d(
            _with_past(flat, rest, layer.time_conv.kernel_size[0] - 1),
            _flat_weight(layer.time_conv),
            layer.time_conv.bias,
        )
        pairs = both.view(batch * rest, 2, channels, height, width)
        later = pairs.reshape(batch, rest * 2, channels, height, width).transpose(1, 2)
        x = torch.cat([_deep(x, count)[:, :, :1], later], dim=2)
        x, count = _flat(x)
    return layer.resample(x), count


def _down(layer: Any, x: torch.Tensor, count: int) -> tuple[torch.Tensor, int]:
    x = layer.resample(x)
    if layer.time_conv is None or count == 1:
        return x, count
    deep = _deep(x, count)
    threes = torch.cat([deep[:, :, :-2:2], deep[:, :, 1:-1:2], deep[:, :, 2::2]], dim=1)
    flat, rest = _flat(threes)
    later = F.conv2d(flat, _flat_weight(layer.time_conv), layer.time_conv.bias)
    return _flat(torch.cat([deep[:, :, :1], _deep(later, rest)], dim=2))


def _with_past(x: torch.Tensor, count: int, past: int) -> torch.Tensor:
    """Each frame's channels behind those of the frames before it; before the first are zeros."""
    if past == 0:
        return x
    rows = x.unflatten(0, (-1, count))
    padded = F.pad(rows, (0, 0, 0, 0, 0, 0, past, 0))
    each = [padded[:, i : i + count] for i in range(past + 1)]
    return torch.cat(each, dim=2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _flat_weight(layer: nn.Conv3d, skipped: int = 0) -> torch.Tensor:
    """O I T H W as O (T I) H W, without the first `skipped` of T."""
    weight = layer.weight[:, :, skipped:].transpose(1, 2).flatten(1, 2)
    return weight.contiguous(memory_format=torch.channels_last)


def _scaled(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    mean = wide.square().mean(dim=1, keepdim=True)
    return (wide * (mean + 1e-12).rsqrt() * gamma.view(1, -1, 1, 1)).to(x.dtype)


def _flat(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    flat = x.transpose(1, 2).flatten(0, 1)
    return flat.contiguous(memory_format=torch.channels_last), x.shape[2]


def _deep(x: torch.Tensor, count: int) -> torch.Tensor:
    return x.unflatten(0, (-1, count)).transpose(1, 2)
