"""The three networks of `pixels`, and how their sizes are read off a file."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from musubi.errors import CheckpointError
from musubi.nn.attention import attention

HEAD = 32


class Folder(nn.Module):
    """Frames B 3 F H W to latents B C (F+3)/4 H/8 W/8, linear both ways; the first frame is held four times."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fold = nn.Linear(4 * 8 * 8 * 3, channels)
        self.unfold = nn.Linear(channels, 4 * 8 * 8 * 3)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        held = torch.cat([frames[:, :, :1].expand(-1, -1, 3, -1, -1), frames], dim=2)
        patches = rearrange(held, "b c (f k) (h p) (w q) -> b f h w (k p q c)", k=4, p=8, q=8)
        return rearrange(self.fold(patches), "b f h w c -> b c f h w")

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        patches = self.unfold(rearrange(latents, "b c f h w -> b f h w c"))
        held = rearrange(patches, "b f h w (k p q c) -> b c (f k) (h p) (w q)", k=4, p=8, q=8)
        return held[:, :, 3:]


class Words(nn.Module):
    """A row for each byte."""

    def __init__(self, text_width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(256, text_width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids)


class Attention(nn.Module):
    """Full attention over video and text tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = rearrange(self.qkv(x), "b l (three h d) -> three b l h d", three=3, d=HEAD)
        return self.out(rearrange(attention(q, k, v), "b l h d -> b l (h d)"))


class Block(nn.Module):
    """Attention and a feed-forward layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x.float()).to(x.dtype) + e)
        return x + self.mlp(self.norm2(x.float()).to(x.dtype) + e)


class Denoiser(nn.Module):
    """Velocity of latents B C F H W at times t in [0, 1], given text B L D."""

    def __init__(self, width: int, depth: int, text_width: int, channels: int = 8) -> None:
        super().__init__()
        self.patch = nn.Linear(channels + 6, width)
        self.text = nn.Linear(text_width, width)
        self.time = nn.Linear(16, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        B, _, frames, H, W = x.shape
        weight = self.patch.weight
        axes = [torch.linspace(-1, 1, n, device=x.device) for n in (frames, H, W)]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        where = torch.cat([grid, (3 * grid).sin()]).expand(B, -1, -1, -1, -1)
        tokens = self.patch(
            rearrange(torch.cat([x, where.to(x.dtype)], 1), "b c f h w -> b (f h w) c").to(
                weight.dtype
            )
        )
        waves = t.float()[:, None] * torch.arange(1, 9, device=t.device)
        e = self.time(torch.cat([waves.sin(), waves.cos()], -1).to(weight.dtype))[:, None]
        hidden = torch.cat([tokens, self.text(text.to(weight.dtype))], dim=1)
        for block in self.blocks:
            hidden = block(hidden, e)
        out = self.head(F.layer_norm(hidden[:, : frames * H * W], hidden.shape[-1:]))
        return rearrange(out, "b (f h w) c -> b c f h w", f=frames, h=H, w=W)


def infer_denoiser(shapes):
    """Sizes of a denoiser file."""
    try:
        width, channels = shapes["patch.weight"]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
        return {
            "width": width,
            "depth": depth,
            "text_width": shapes["text.weight"][1],
            "channels": channels - 6,
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            "The file holds no pixels denoiser.", fix="Give the one that was trained."
        ) from error


def infer_folder(shapes):
    """Sizes of an autoencoder file."""
    return {"channels": shapes["fold.weight"][0]}


def infer_words(shapes):
    """Sizes of a text table file."""
    return {"text_width": shapes["table.weight"][1]}
