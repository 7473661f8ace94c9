"""SigLIP's vision tower, with the module names of the released file.

Zhai et al., https://arxiv.org/abs/2303.15343. Axes: B pictures, L patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from musubi.encoders import hub_config
from musubi.encoders.sizes import all_there, depth
from musubi.errors import CheckpointError
from musubi.nn.attention import attention
from musubi.nn.norm import LayerNorm
from musubi.plugin import Shapes

SIDE = 384
"""Pixels of the square that a picture is made to."""
HEAD = 72
EPS = 1e-6


class Embeddings(nn.Module):
    """Patches of a picture to tokens, each with the embedding of its place."""

    def __init__(self, dim: int, positions: int, patch: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.position_embedding = nn.Embedding(positions, dim)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """B 3 H W in [-1, 1] to B L D; what is left over of a patch at the edges is not seen."""
        weight = self.patch_embedding.weight
        size = self.patch_embedding.kernel_size[0]
        rows, columns = (side // size for side in pixels.shape[2:])
        patches = rearrange(
            pixels[:, :, : rows * size, : columns * size],
            "b c (y h) (x w) -> b (y x) (c h w)",
            h=size,
            w=size,
        )
        tokens = F.linear(patches.to(weight.dtype), weight.flatten(1), self.patch_embedding.bias)
        return tokens + self.position_embedding.weight


class Attention(nn.Module):
    """Every patch looks at every patch."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B L D in and out."""
        shape = (self.heads, -1)
        q, k, v = (p(x).unflatten(-1, shape) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attention(q, k, v).flatten(2))


class Mlp(nn.Module):
    """Feed-forward layers."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B L D in and out."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Layer(nn.Module):
    """Attention, then feed-forward, each on normed tokens and added to them."""

    def __init__(self, dim: int, ffn_dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(dim, eps=eps)
        self.self_attn = Attention(dim, heads)
        self.layer_norm2 = LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, ffn_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B L D in and out."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The layers, under the name that the checkpoint has for them."""

    def __init__(self, dim: int, ffn_dim: int, depth: int, heads: int, eps: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, ffn_dim, heads, eps) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B L D in and out."""
        for layer in self.layers:
            x = layer(x)
        return x


class Tower(nn.Module):
    """Embeddings, layers, and the norm behind them."""

    def __init__(
        self,
        *,
        dim: int,
        ffn_dim: int,
        num_layers: int,
        positions: int,
        patch: int,
        heads: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(dim, positions, patch)
        self.encoder = Encoder(dim, ffn_dim, num_layers, heads, eps)
        self.post_layernorm = LayerNorm(dim, eps=eps)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """B 3 H W in [-1, 1] to B L D."""
        return self.post_layernorm(self.encoder(self.embeddings(pixels)))


class SiglipVision(nn.Module):
    """Pictures to tokens.

    Args:
        dim: Width.
        ffn_dim: Width of the feed-forward layers.
        num_layers: Number of layers.
        positions: Patches of a picture, 27 x 27.
        patch: Side of a patch in pixels.
        side: Pixels of the square that a picture is made to.
        heads: Attention heads; None: as many of 72 as the width has room for.
        eps: Added to the variance in norms.
    """

    def __init__(
        self,
        *,
        dim: int,
        ffn_dim: int,
        num_layers: int,
        positions: int,
        patch: int,
        side: int = SIDE,
        heads: int | None = None,
        eps: float = EPS,
    ) -> None:
        super().__init__()
        self.side = side
        self.vision_model = Tower(
            dim=dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            positions=positions,
            patch=patch,
            heads=heads or max(dim // HEAD, 1),
            eps=eps,
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last hidden states, normed: B 3 384 384 in [-1, 1] to B 729 D."""
        return self.vision_model(pixels)


def pixels(picture: np.ndarray, side: int = SIDE) -> torch.Tensor:
    """A picture as the tower takes it, whatever its shape: squeezed to a square, 1 3 S S.

    Pillow's bicubic filter on bytes, as SigLIP's own preprocessing has it: torch's antialiased one
    is 6e-3 off.

    Args:
        picture: uint8, H W 3.
        side: Pixels of the square's side, S.
    """
    from PIL import Image

    square = Image.fromarray(np.ascontiguousarray(picture)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    levels = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None]
    return (levels.float() / 255 - 0.5) / 0.5


def encode(encoder: nn.Module, picture: np.ndarray) -> torch.Tensor:
    """One picture, uint8 H W 3, to its tokens (729, D), in the dtype the tower is stored in."""
    tower: Any = encoder
    norm = encoder.get_parameter("vision_model.post_layernorm.weight")
    table = encoder.get_parameter("vision_model.embeddings.position_embedding.weight")
    return encoder(pixels(picture, tower.side).to(norm.device))[0].to(table.dtype)


def infer(shapes: Shapes, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Sizes of a SigLIP vision tower, from our names and shapes, and its config.json if it has one.

    Raises:
        CheckpointError: It is something else.
    """
    fix = (
        "Give --image_encoder sigclip_vision_patch14_384.safetensors, or its folder image_encoder."
    )
    patches = "vision_model.embeddings.patch_embedding.weight"
    places = "vision_model.embeddings.position_embedding.weight"
    inner = "vision_model.encoder.layers.0.mlp.fc1.weight"
    bias = "vision_model.embeddings.patch_embedding.bias"
    all_there(shapes, (patches, places, inner, bias), "a SigLIP vision tower", fix)
    dim, channels, patch, _ = shapes[patches]
    positions = shapes[places][0]
    layers = depth(shapes, "vision_model.encoder.layers.")
    part = hub_config.part_of(config, "siglip_vision_model", "vision_config")
    more = {} if part is None else _configured(part, dim, layers, patch)
    if channels != 3 or (more.get("side", SIDE) // patch) ** 2 != positions:
        side = math.isqrt(positions) * patch
        raise CheckpointError(
            f"This is a SigLIP of {positions} patches of {patch} pixels, for pictures of about {side} "
            f"pixels; what is needed is the one for {SIDE}.",
            fix=fix,
        )
    return {
        "dim": dim,
        "ffn_dim": shapes[inner][0],
        "num_layers": layers,
        "positions": positions,
        "patch": patch,
        **more,
    }


def _configured(part: Mapping[str, Any], dim: int, layers: int, patch: int) -> dict[str, Any]:
    """What a config.json says otherwise than that of the released tower."""
    from transformers import SiglipVisionConfig

    sizes = {"hidden_size": dim, "num_hidden_layers": layers, "patch_size": patch}
    config = hub_config.read(SiglipVisionConfig, part, sizes)
    said = {
        "side": config.image_size,
        "heads": hub_config.heads(config, dim),
        "eps": config.layer_norm_eps,
    }
    usual = {"side": SIDE, "heads": max(dim // HEAD, 1), "eps": EPS}
    return hub_config.beside_default(said, usual)
