"""HunyuanVideo's six verbs: what one command does with the networks, for one task."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from musubi.encoders.clip_text.network import encode as encode_clip
from musubi.encoders.hunyuan_vae.network import SCALING, Pieces
from musubi.encoders.hunyuan_vae.options import pieces_from
from musubi.encoders.llama.network import encode as encode_llm
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


class HunyuanVideoRuntime:
    """Text to video, and SkyReels' image to video.

    `condition` gives `predict` these inputs:
        llm: hidden states of each caption, a list of (L, D), padding cut off.
        clipL: pooled text, B D.
        guidance: embedded guidance, a float; a rollout lays the recipe's over it.
        image: for image to video, the latents of the first frame, B C 1 H W, in the model's scale.
        video: of a video to start from, if there is one, the latents, B C F H W, in the model's scale.
    """

    def __init__(self, architecture: Architecture, task: Task, options: Mapping[str, Any]) -> None:
        self.architecture = architecture
        self.task = task
        given = options.get("guidance_scale")
        self._guidance = 1.0 if given is None else float(given)
        self._seed: int | None = options.get("vae_sample_seed")
        self._decoding = pieces_from(options)
        tiled = options.get("vae_tiling") or options.get("vae_spatial_tile_sample_min_size")
        self._encoding = self._decoding if tiled else replace(self._decoding, tile=None)

    def encode_text(
        self, nets: Networks, component: str, prompts: Sequence[Prompt]
    ) -> list[Record]:
        encoder, tokenizer = nets[component], nets.tokenizer(component)
        if component == "text_encoder1":
            found = encode_llm(encoder, tokenizer, [prompt.text for prompt in prompts])
            return [{"llm": hidden, "llm_mask": mask} for hidden, mask in found]
        found = encode_clip(encoder, tokenizer, [prompt.text for prompt in prompts])
        return [{"clipL": pooled, "clipL_mask": mask} for pooled, mask in found]

    def encode_media(self, nets: Networks, clips: Sequence[Clip]) -> list[tuple[Record, ...]]:
        # one by one: a convolution rounds otherwise in company
        return [(self._encoded(nets, clip),) for clip in clips]

    def condition(self, batch: Mapping[str, Any]) -> Conditioning:
        lengths = batch["llm_mask"].sum(dim=1).tolist()  # masks are on the host
        inputs: dict[str, Any] = {
            "llm": [one[:n] for one, n in zip(batch["llm"], lengths, strict=True)],
            "clipL": batch["clipL"],
            "guidance": self._guidance,
        }
        latents = batch.get("latents")
        if latents is not None:
            latents = latents * SCALING
        if self.task.input("image"):
            given = batch.get("latents_image")  # when generating; training has the clip itself
            first = latents[:, :, :1] if latents is not None else None
            inputs["image"] = first if given is None else given * SCALING
        video = batch.get("latents_video")
        if video is not None:
            inputs["video"] = video * SCALING
        return Conditioning(inputs, latents=latents)

    def predict(
        self, dit: nn.Module, x: torch.Tensor, t: torch.Tensor, given: Conditioning
    ) -> torch.Tensor:
        inputs = given.inputs
        scale = torch.full((len(x),), float(inputs["guidance"]), device=x.device)
        joined = None
        if "image" in inputs:
            image = inputs["image"].to(x)
            joined = torch.cat([image, image.new_zeros(x[:, :, 1:].shape)], dim=2)
        return dit(
            x, t, inputs["llm"], inputs["clipL"], guidance=_thousandfold(scale), joined=joined
        )

    def rollout(
        self, recipe: Recipe, given: Conditioning, device: torch.device
    ) -> Generator[Section, torch.Tensor, torch.Tensor]:
        channels, frames, height, width = self.task.shape.latent_shape(
            recipe.width, recipe.height, recipe.frames
        )
        shape = (1, channels, 1, height, width)
        source = torch.device("cpu") if recipe.cpu_noise else device
        generator = torch.Generator(source).manual_seed(recipe.seed)
        # A frame at a time, so that videos of one seed begin alike whatever their length; bfloat16,
        # so that a seed gives what it always gave.
        noise = torch.cat(
            [
                torch.randn(shape, generator=generator, device=source, dtype=torch.bfloat16)
                for _ in range(frames)
            ],
            dim=2,
        )
        guidance = recipe.options.get("embedded_cfg_scale")
        if guidance is None:
            guidance = self.task.sampling.options["embedded_cfg_scale"]
        section = Section(
            noise=noise.to(device).float(),
            inputs={"guidance": guidance},
            clean=given.inputs.get("video"),
            strength=recipe.options.get("strength", 1.0),
        )
        return (yield section)

    def decode(
        self, nets: Networks, latents: torch.Tensor, recipe: Recipe | None = None
    ) -> Iterator[torch.Tensor]:
        vae: Any = nets["vae"]
        frames = vae.decode(latents.to(nets.device) / SCALING, pieces=self._decoding)
        yield frames.add_(1).div_(2)

    def _encoded(self, nets: Networks, clip: Clip) -> Record:
        wanted: list[tuple[str, np.ndarray, Pieces]] = []
        if clip.target:
            wanted.append(("latents", clip.frames, self._encoding))
        image, video = clip.input("image"), clip.input("video")
        if not clip.target and image is not None:
            wanted.append(("latents_image", image, self._encoding))
        if video is not None:
            wanted.append(("latents_video", video, self._decoding))  # long: always in tiles
        record = Record()
        for name, frames, pieces in wanted:
            vae: Any = nets["vae"]
            latents = vae.encode(
                _pixels(torch.from_numpy(frames)[None], nets.device),
                pieces=pieces,
                generator=self._generator(clip) if clip.target else None,
            )
            record[name] = latents[0].to(vae.dtype)
        return record

    def _generator(self, clip: Clip) -> torch.Generator | None:
        if self._seed is None:
            return None
        # A clip's noise follows from what it shows, not from its neighbours or its name.
        seed = self._seed ^ zlib.crc32(np.ascontiguousarray(clip.frames).data)
        return torch.Generator().manual_seed(seed)


def check(recipe: Recipe) -> None:
    """Refuse a strength that is not possible, before anything is loaded.

    Raises:
        ConfigError: It is not above 0 and at most 1, or leaves no step.
    """
    strength = recipe.options.get("strength", 1.0)
    if not recipe.options.get("video_path"):
        return
    if not 0 < strength <= 1:
        raise ConfigError(
            f"A strength of {strength:g} is not possible.",
            fix="Give --strength above 0, which keeps the most, up to 1, which keeps nothing.",
        )
    if int(recipe.steps * strength) < 1:
        raise ConfigError(
            f"A strength of {strength:g} takes none of {recipe.steps} steps.",
            fix=f"Give --strength {1 / recipe.steps:.2g} or more, or more --infer_steps.",
        )


def _thousandfold(scale: torch.Tensor) -> torch.Tensor:
    # In the dtype that is computed in, as in everything this model was sampled with: in bfloat16
    # 6.0 becomes 6016.
    if torch.is_autocast_enabled(scale.device.type):
        dtype = torch.get_autocast_dtype(scale.device.type)
        return (scale.to(dtype) * 1000).float()
    return scale * 1000


def _pixels(frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    # B F H W 3 in 0..255 → B 3 F H W in [-1, 1].
    return frames.to(device).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
