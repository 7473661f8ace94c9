"""Wan's six verbs: what one command does with the networks, for one task."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from musubi.architectures.wan import media, pictures
from musubi.encoders.umt5.network import encode
from musubi.errors import CheckpointError, ConfigError
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

IMAGE_TOKENS = 257


class WanRuntime:
    """Every task of Wan2.1 and Wan2.2.

    `condition` gives `predict` these inputs, of which a task has some:
        t5: hidden states of each caption, a list of (L, D) or B L D.
        joined: what is joined to the noise, B C F H W.
        clip: image features, B L D; for a model with an image embedding, zeros when absent.
        positions: the place in time of each latent frame, one for the whole batch.
        first: latents of a given first frame, B C 1 H W, which stay as they are.
        reference: latents of a reference image, B C H W.
        control: what the control blocks read, B C F H W.
        control_scale: the weight of what they add.
        video: latents of a video to start from, B C F H W.
        skip_blocks: numbers of the blocks to leave out; skip-layer guidance adds it.
    """

    def __init__(self, architecture: Architecture, task: Task, options: Mapping[str, Any]) -> None:
        self.architecture = architecture
        self.task = task
        self._vae = next(n for n in task.components if architecture.component(n).role == "vae")
        self._vae_settings = {
            "cache_on_host": bool(options.get("vae_cache_cpu")),
            "tile": _tile(options) if options.get("vae_tiling") else None,
        }
        self._single = task.name.startswith("one_frame")

    def encode_text(
        self, nets: Networks, component: str, prompts: Sequence[Prompt]
    ) -> list[Record]:
        texts = [prompt.text for prompt in prompts]
        return [{"t5": one} for one in encode(nets[component], nets.tokenizer(component), texts)]

    def encode_media(self, nets: Networks, clips: Sequence[Clip]) -> list[tuple[Record, ...]]:
        encoders = media.Encoders(nets, self._vae, self._vae_settings)
        recorder = media.RECORDERS[self.task.name]
        records = [recorder(encoders, clip) for clip in clips]
        wanted = [n for n, clip in enumerate(clips) if clip.target and "latents" not in records[n]]
        if wanted:
            frames = torch.from_numpy(np.stack([clips[n].frames for n in wanted]))
            vae: Any = nets[self._vae]
            found = vae.encode(_pixels(frames, nets.device), **self._vae_settings).to(vae.dtype)
            for n, latents in zip(wanted, found, strict=True):
                records[n]["latents"] = latents.clone()
        return [(record,) for record in records]

    def condition(self, batch: Mapping[str, Any]) -> Conditioning:
        inputs: dict[str, Any] = {"t5": batch["t5"]}
        latents, image = batch.get("latents"), batch.get("latents_image")
        weight = batch.get("latents_weight")
        fields = {field.name for field in self.task.schema.media}
        if self.task.name.endswith("-FC"):
            inputs["joined"] = self._control(batch)
        elif self.task.name.startswith("ti2v"):
            if latents is not None and self.task.name == "ti2v-image":
                image = latents[:, :, :1]
            if image is not None:
                inputs["first"] = image
            if image is not None and latents is not None:
                weight = torch.ones_like(latents[:1, :1])
                weight[:, :, 0] = 0  # it is given, not made
        elif "latents_ends" in fields:
            inputs["joined"] = batch["latents_ends"]
        elif "latents_image" in fields:
            inputs["joined"] = image
        clip = batch.get("clip", batch.get("clip_ends"))
        if clip is not None:
            _check_features(self.task, clip)
            inputs["clip"] = clip.flatten(1, -2)  # one image after the other
        if self._single:
            inputs["positions"] = _shared(batch["f_indices"])
        for name in ("reference", "vace", "video"):
            given = batch.get(f"latents_{name}")
            if given is not None:
                inputs[{"vace": "control"}.get(name, name)] = given
        if "reference" in inputs:
            inputs["reference"] = inputs["reference"][:, :, 0]
        return Conditioning(inputs, latents=latents, weight=weight)

    def _control(self, batch: Mapping[str, Any]) -> torch.Tensor:
        first = batch.get("latents_image") if "image" in self._given else None
        if first is not None:
            first = first[:, 4:]  # behind the mask, which these models do not take
        joined = pictures.control_only(batch["latents_control"], first)
        end = batch.get("latents_end")
        if end is not None:
            joined[:, 16:, -1] = end[:, :, 0].to(joined)
        return joined

    @property
    def _given(self) -> set[str]:
        return {one.name for one in self.task.inputs}

    def predict(
        self, dit: nn.Module, x: torch.Tensor, t: torch.Tensor, given: Conditioning
    ) -> torch.Tensor:
        inputs = given.inputs
        first = inputs.get("first")
        if first is not None:
            # The given frame is clean at every time, and is told so.
            x = torch.cat([first.to(x).expand(len(x), -1, -1, -1, -1), x[:, :, 1:]], dim=2)
            t = torch.cat([t.new_zeros(len(x), 1), t[:, None].expand(-1, x.shape[2] - 1)], dim=1)
        velocity = dit(
            x,
            t,
            inputs["t5"],
            joined=inputs.get("joined"),
            clip=_features(dit, inputs.get("clip"), x),
            reference=_reference(dit, inputs.get("reference")),
            control=inputs.get("control"),
            control_scale=inputs.get("control_scale", 1.0),
            frame_positions=inputs.get("positions"),
            skip=inputs.get("skip_blocks", ()),
        )
        if first is not None:
            velocity = torch.cat([torch.zeros_like(velocity[:, :, :1]), velocity[:, :, 1:]], dim=2)
        return velocity

    def rollout(
        self, recipe: Recipe, given: Conditioning, device: torch.device
    ) -> Generator[Section, torch.Tensor, torch.Tensor]:
        shape = list(self.task.shape.latent_shape(recipe.width, recipe.height, recipe.frames))
        inputs = given.inputs
        beside = next((inputs[n] for n in ("joined", "control") if n in inputs), None)
        if beside is not None:
            shape[1] = beside.shape[2]  # an end image or a reference has a latent frame of its own
        source = torch.device("cpu") if recipe.cpu_noise else device
        generator = torch.Generator(source).manual_seed(recipe.seed)
        noise = torch.randn(shape, generator=generator, device=source, dtype=torch.float32)
        noise = noise[None].to(device)
        first = inputs.get("first")
        if first is not None:
            noise[:, :, :1] = first.to(noise)
        latents = yield Section(
            noise=noise,
            inputs={"control_scale": recipe.options.get("control_scale", 1.0)},
            clean=inputs.get("video"),
            strength=recipe.options.get("strength", 1.0) if "video" in inputs else 1.0,
        )
        if first is not None:
            latents = torch.cat([first.to(latents), latents[:, :, 1:]], dim=2)
        if self._single:
            target = _target(inputs["joined"])
            latents = latents[:, :, target : target + 1]
        elif self.task.name == "vace":
            count = self.task.shape.latent_shape(recipe.width, recipe.height, recipe.frames)[1]
            latents = latents[:, :, latents.shape[2] - count :]
        return latents

    def decode(
        self, nets: Networks, latents: torch.Tensor, recipe: Recipe | None = None
    ) -> Iterator[torch.Tensor]:
        vae: Any = nets[self._vae]
        latents, settings = latents.to(nets.device), self._vae_settings
        if settings["tile"] is not None:
            yield vae.decode(latents, **settings).add_(1).div_(2)
            return
        for piece in vae.pieces(latents, cache_on_host=settings["cache_on_host"]):
            yield piece.add_(1).div_(2)


def _pixels(frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    # B F H W 3 in 0..255 → B 3 F H W in [-1, 1].
    return frames.to(device).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


def _features(dit: nn.Module, clip: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """Image features for a model that takes some: zeros still pass its image embedding."""
    embedding: Any = getattr(dit, "img_emb", None)
    if embedding is None:
        return None
    if clip is None:
        width = embedding.proj[0].weight.shape[0]
        return x.new_zeros(len(x), IMAGE_TOKENS, width)
    if hasattr(embedding, "emb_pos") and clip.shape[1] != embedding.emb_pos.shape[1]:
        raise ConfigError(
            f"This first-last-frame model reads two images, and {clip.shape[1] // IMAGE_TOKENS} "
            "was given.",
            fix="Give --end_image_path too, and two control images in training; or use an "
            "image-to-video model.",
        )
    return clip


def _check_features(task: Task, clip: torch.Tensor) -> None:
    """Refuse the records of one-frame tasks where one image's features are a matrix."""
    declared = next(f for f in task.schema.media if f.name.startswith("clip"))
    if clip.ndim != len(declared.dims) + 1:
        raise ConfigError(
            f"These records were made for a one-frame task, and the task is {task.name!r}.",
            fix="Give --one_frame, or cache the dataset again for this task.",
        )


def _reference(dit: nn.Module, reference: torch.Tensor | None) -> torch.Tensor | None:
    if reference is not None and not hasattr(dit, "ref_conv"):
        raise CheckpointError(
            "This Fun-Control model takes no reference image: it has no 'ref_conv.weight'.",
            fix="Leave --reference_image_path out, or give --dit a model of Fun-Control V1.1.",
        )
    return reference


def _shared(positions: torch.Tensor) -> list[int]:
    """The positions of the batch's items, which must be alike."""
    rows = positions.tolist()
    if any(row != rows[0] for row in rows):
        raise ConfigError(
            f"Items with places in time {rows[0]} and {next(r for r in rows if r != rows[0])} are in "
            "one batch.",
            fix="Give batch_size = 1 to the dataset, or the same fp_1f_clean_indices and "
            "fp_1f_target_index to all of its images.",
        )
    return rows[0]


def _target(joined: torch.Tensor) -> int:
    """The latent frame whose mask is zero: the one that is made."""
    return int(joined[0, 0].flatten(1).amax(1).argmin())


def _tile(options: Mapping[str, Any]) -> int:
    tile = options["vae_tile_size"]
    if tile < 64 or tile % 32:
        raise ConfigError(
            f"vae_tile_size is {tile}, and a VAE tile's side must be a multiple of 32, at least 64.",
            fix=f"Write --vae_tile_size {max(64, round(tile / 32) * 32)}.",
        )
    return tile
