"""CLIP's image tower: a vision transformer whose features are taken before its last block.

Radford et al. 2021, https://arxiv.org/abs/2103.00020; the weights are open_clip's ViT-H/14.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from musubi.encoders import hub_config
from musubi.errors import CheckpointError
from musubi.nn.norm import LayerNorm
from musubi.plugin import Shapes

HEAD = 80
"""Size of an attention head of ViT-H."""
EPS = 1e-5
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class QuickGelu(nn.Module):
    """The cheap GELU of OpenAI's models."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape in and out."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGelu}


class Attention(nn.Module):
    """Attention among the tokens of one picture."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B L D in and out."""
        # The plain kernel, not the user's choice: heads of 80 fit few others.
        q, k, v = self.to_qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a feed-forward layer, each behind its norm."""

    def __init__(self, dim: int, ffn_dim: int, heads: int, activation: str, eps: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads)
        self.norm2 = LayerNorm(dim, eps=eps)
        act = ACTIVATIONS[activation]()
        self.mlp = nn.Sequential(nn.Linear(dim, ffn_dim), act, nn.Linear(ffn_dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B L D in and out."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ClipVision(nn.Module):
    """Pictures to features, one row for the class token and one for each patch.

    Args:
        dim: Width.
        ffn_dim: Width of the feed-forward layers.
        num_layers: Number of blocks in the file; the last one never runs.
        patch: Side of a patch in pixels.
        positions: Tokens of a picture, the class token among them.
        heads: Attention heads; None: heads of 80.
        activation: Of the feed-forward layers: a name in `ACTIVATIONS`.
        eps: Added to the variance in norms.
    """

    def __init__(
        self,
        *,
        dim: int,
        ffn_dim: int,
        num_layers: int,
        patch: int,
        positions: int,
        heads: int | None = None,
        activation: str = "gelu",
        eps: float = EPS,
    ) -> None:
        super().__init__()
        self.side = patch * round((positions - 1) ** 0.5)
        self.patch_embedding = nn.Conv2d(3, dim, patch, stride=patch, bias=False)
        self.cls_embedding = nn.Parameter(torch.randn(dim) / dim**0.5)
        self.pos_embedding = nn.Parameter(torch.randn(positions, dim) / dim**0.5)
        self.pre_norm = LayerNorm(dim, eps=eps)
        self.transformer = nn.ModuleList(
            Block(dim, ffn_dim, heads or dim // HEAD, activation, eps) for _ in range(num_layers)
        )
        self._used = num_layers - 1

    def trim(self) -> None:
        """Drop the last block, whose output is not used."""
        del self.transformer[self._used :]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pictures B 3 H W, of the size the tower reads, to features B L D."""
        tokens = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))
        tokens = tokens.flatten(2).transpose(1, 2)
        first = self.cls_embedding.to(tokens).expand(len(tokens), 1, -1)
        x = torch.cat([first, tokens], dim=1) + self.pos_embedding.to(tokens)
        x = self.pre_norm(x)
        for block in self.transformer[: self._used]:
            x = block(x)
        return x


def prepared(picture: torch.Tensor, side: int) -> torch.Tensor:
    """A picture as the tower reads it: 1 3 side side, float32.

    The whole picture is resized without regard to its shape, by bicubic interpolation without
    antialiasing, as the official code does it; what shoots over the range is kept.

    Args:
        picture: 3 H W in [-1, 1], at its own size.
        side: The side that the tower reads: 224.
    """
    x = F.interpolate(picture[None].float(), size=(side, side), mode="bicubic", align_corners=False)
    mean = torch.tensor(MEAN, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=x.device).view(1, 3, 1, 1)
    return (x * 0.5 + 0.5 - mean) / std


def encode(tower: nn.Module, pictures: list[torch.Tensor]) -> torch.Tensor:
    """Features of pictures (each 3 H W in [-1, 1], of any size): B L D, in the tower's dtype."""
    clip: Any = tower
    device = clip.patch_embedding.weight.device
    pixels = torch.cat([prepared(one.to(device), clip.side) for one in pictures])
    return clip(pixels)


def infer(shapes: Shapes, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Sizes of a CLIP image tower, from our names and shapes, and from its config.json if it has one.

    Raises:
        CheckpointError: It is something else.
    """
    needed = (
        "patch_embedding.weight",
        "cls_embedding",
        "pos_embedding",
        "pre_norm.weight",
        "transformer.0.attn.to_qkv.weight",
        "transformer.0.mlp.0.weight",
    )
    fix = "Give --clip models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth or clip_vision_h."
    absent = next((name for name in needed if name not in shapes), None)
    if absent is not None:
        raise CheckpointError(
            f"This is not a CLIP image encoder: it has no tensor {absent!r}.", fix=fix
        )
    dim, channels, patch = shapes["patch_embedding.weight"][:3]
    positions = shapes["pos_embedding"][0]
    part = hub_config.part_of(config, "clip_vision_model", "vision_config")
    layers = len({n.split(".")[1] for n in shapes if n.startswith("transformer.")})
    more = {} if part is None else _configured(part, dim, layers, fix)
    if (
        ("heads" not in more and dim % HEAD)
        or channels != 3
        or round((positions - 1) ** 0.5) ** 2 != positions - 1
    ):
        raise CheckpointError(
            f"This CLIP image encoder is not ViT-H/14: it is {dim} wide and has {positions} "
            f"positions, where the width is a multiple of {HEAD}.",
            fix=fix,
        )
    return {
        "dim": dim,
        "ffn_dim": shapes["transformer.0.mlp.0.weight"][0],
        "num_layers": layers,
        "patch": patch,
        "positions": positions,
        **more,
    }


def _configured(part: Mapping[str, Any], dim: int, layers: int, fix: str) -> dict[str, Any]:
    """What a config.json says otherwise than ViT-H's."""
    from transformers import CLIPVisionConfig

    sizes = {"hidden_size": dim, "num_hidden_layers": layers}
    config = hub_config.read(CLIPVisionConfig, part, sizes)
    if config.hidden_act not in ACTIVATIONS:
        raise CheckpointError(
            f"Its config.json says hidden_act = {config.hidden_act!r}, which no CLIP has.", fix=fix
        )
    said = {
        "heads": hub_config.heads(config, dim),
        "activation": config.hidden_act,
        "eps": config.layer_norm_eps,
    }
    return hub_config.beside_default(said, {"heads": dim / HEAD, "activation": "gelu", "eps": EPS})
