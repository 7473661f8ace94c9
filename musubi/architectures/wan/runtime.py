"""Wan's six verbs: what one command does with the networks, for one task."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from musubi.encoders.umt5.network import encode
from musubi.errors import ConfigError
from musubi.plugin import (
    Architecture,
    Clip,
    Conditioning,
    Networks,
    Prompt,
    Recipe,
    Record,
    Section,
    Task,
)


class WanRuntime:
    """Text to video and text to image.

    `condition` gives `predict` these inputs; other tasks add theirs beside them:
        t5: hidden states of each caption, a list of (L, D) or B L D.
        skip_blocks: optional, numbers of the blocks to leave out; the sampler adds it for
            skip-layer guidance.
    """

    def __init__(self, architecture: Architecture, task: Task, options: Mapping[str, Any]) -> None:
        self.architecture = architecture
        self.task = task
        self._vae_settings = {
            "cache_on_host": bool(options.get("vae_cache_cpu")),
            "tile": _tile(options) if options.get("vae_tiling") else None,
        }

    def encode_text(
        self, nets: Networks, component: str, prompts: Sequence[Prompt]
    ) -> list[Record]:
        hidden = encode(
            nets[component], nets.tokenizer(component), [prompt.text for prompt in prompts]
        )
        return [{"t5": one} for one in hidden]

    def encode_media(self, nets: Networks, clips: Sequence[Clip]) -> list[tuple[Record, ...]]:
        if not all(clip.target for clip in clips):
            return [({},) for _ in clips]  # nothing but the text conditions these tasks
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
        vae: Any = nets["vae"]
        latents = vae.encode(_pixels(frames, nets.device), **self._vae_settings).to(vae.dtype)
        return [({"latents": one.clone()},) for one in latents]

    def condition(self, batch: Mapping[str, Any]) -> Conditioning:
        return Conditioning({"t5": batch["t5"]}, latents=batch.get("latents"))

    def predict(
        self, dit: nn.Module, x: torch.Tensor, t: torch.Tensor, given: Conditioning
    ) -> torch.Tensor:
        return dit(x, t, given.inputs["t5"], skip=given.inputs.get("skip_blocks", ()))

    def rollout(
        self, recipe: Recipe, given: Conditioning, device: torch.device
    ) -> Generator[Section, torch.Tensor, torch.Tensor]:
        shape = self.task.shape.latent_shape(recipe.width, recipe.height, recipe.frames)
        source = torch.device("cpu") if recipe.cpu_noise else device
        generator = torch.Generator(source).manual_seed(recipe.seed)
        noise = torch.randn(shape, generator=generator, device=source, dtype=torch.float32)
        return (yield Section(noise=noise[None].to(device)))

    def decode(
        self, nets: Networks, latents: torch.Tensor, recipe: Recipe | None = None
    ) -> Iterator[torch.Tensor]:
        vae: Any = nets["vae"]
        latents, settings = latents.to(nets.device), self._vae_settings
        if settings["tile"] is not None:
            yield vae.decode(latents, **settings).add_(1).div_(2)
            return
        for piece in vae.pieces(latents, cache_on_host=settings["cache_on_host"]):
            yield piece.add_(1).div_(2)


def _pixels(frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    # B F H W 3 in 0..255 → B 3 F H W in [-1, 1].
    return frames.to(device).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


def _tile(options: Mapping[str, Any]) -> int:
    tile = options["vae_tile_size"]
    if tile < 64 or tile % 32:
        raise ConfigError(
            f"vae_tile_size is {tile}, and a VAE tile's side must be a multiple of 32, at least 64.",
            fix=f"Write --vae_tile_size {max(64, round(tile / 32) * 32)}.",
        )
    return tile
