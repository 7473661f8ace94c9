"""FramePack's six verbs: what one command does with the networks, for one task."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from musubi.architectures.framepack import caching, layout, rollout, text
from musubi.architectures.framepack.context import real_tokens
from musubi.architectures.framepack.decoding import soft_appended
from musubi.architectures.framepack.options import single_of, window_of
from musubi.architectures.framepack.single import OneFrame
from musubi.encoders.hunyuan_vae.network import SCALING, Pieces
from musubi.encoders.hunyuan_vae.options import pieces_from
from musubi.encoders.siglip.network import encode as encode_picture
from musubi.errors import DataError, counted
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

HISTORY = {
    "clean": ("latents_clean", "clean_latent_indices"),
    "clean_2x": ("latents_clean_2x", "clean_latent_2x_indices"),
    "clean_4x": ("latents_clean_4x", "clean_latent_4x_indices"),
}


class FramePackRuntime:
    """Image to video by sections, and single frames from control images.

    `condition` gives `predict` these inputs:
        text, real, pooled: a caption, B 512 D, how much of it is real, and B D.
        guidance: embedded guidance, a float; a rollout lays the recipe's over it.
        image: tokens of the start image, B 729 D.
        indices: frame indices of the latents, B F.
        clean, clean_2x, clean_4x: history, each latents (None for zeros) and their indices.
        starts, pictures: for a video to make, of each start image the latents, B C 1 H W, and the
            tokens, B 729 D; `rollout` makes the three above of them.
        end: the latents of its last frame, where one was given.
    """

    def __init__(self, architecture: Architecture, task: Task, options: Mapping[str, Any]) -> None:
        self.architecture = architecture
        self.task = task
        self._options = options
        given = options.get("guidance_scale")
        self._guidance = 1.0 if given is None else float(given)
        self._seed: int | None = options.get("vae_sample_seed")
        self._pieces: Pieces = pieces_from(options)

    @property
    def _single(self) -> bool:
        return self.task.name == "one_frame"

    def encode_text(
        self, nets: Networks, component: str, prompts: Sequence[Prompt]
    ) -> list[Record]:
        encoder, tokenizer = nets[component], nets.tokenizer(component)
        texts = [prompt.text for prompt in prompts]
        if component == "text_encoder1":
            system = self._options.get("custom_system_prompt")
            found = text.encode_llama(encoder, tokenizer, texts, system=system)
            return [
                Record({"llama_vec": hidden, "llama_attention_mask": mask})
                for hidden, mask in found
            ]
        pooled = text.encode_clip(encoder, tokenizer, texts)
        return [Record({"clip_l_pooler": one}) for one in pooled]

    def encode_media(self, nets: Networks, clips: Sequence[Clip]) -> list[tuple[Record, ...]]:
        # one by one: a convolution rounds otherwise in company
        return [self._encoded(nets, clip) for clip in clips]

    def condition(self, batch: Mapping[str, Any]) -> Conditioning:
        inputs: dict[str, Any] = {
            "text": batch["llama_vec"],
            "real": real_tokens(batch["llama_attention_mask"]),
            "pooled": batch["clip_l_pooler"],
            "guidance": self._guidance,
        }
        if "latent_indices" in batch:
            inputs |= {"image": batch["image_embeddings"], "indices": batch["latent_indices"]}
            inputs |= {
                name: (batch.get(latents), batch[places])
                for name, (latents, places) in HISTORY.items()
                if places in batch
            }
        else:
            # One item for each start image, and a list of them for each sample of the batch.
            inputs["starts"] = [
                torch.stack(one) for one in zip(*batch["latents_start"], strict=True)
            ]
            inputs["pictures"] = [
                torch.stack(one) for one in zip(*batch["picture_embeddings"], strict=True)
            ]
            inputs["end"] = batch.get("latents_end")
        return Conditioning(inputs, latents=batch.get("latents"))

    def predict(
        self, dit: nn.Module, x: torch.Tensor, t: torch.Tensor, given: Conditioning
    ) -> torch.Tensor:
        inputs = given.inputs
        guidance = torch.full((len(x),), float(inputs["guidance"]), device=x.device)
        level = _as_computed(t.float() * 1000)
        scale = 1.0
        if inputs.get("rope_threshold") is not None and level[0] >= inputs["rope_threshold"]:
            scale = inputs["rope_factor"]
        return dit(
            x,
            level,
            inputs["text"],
            inputs["real"],
            inputs["pooled"],
            inputs["image"],
            indices=inputs["indices"],
            guidance=_as_computed(_as_computed(guidance) * 1000),
            rope_scale=scale,
            **{name: inputs[name] for name in HISTORY if name in inputs},
        )

    def rollout(
        self, recipe: Recipe, given: Conditioning, device: torch.device
    ) -> Generator[Section, torch.Tensor, torch.Tensor]:
        make = rollout.one_frame if self._single else rollout.by_sections
        return (yield from make(self.task, recipe, given, device))

    def decode(
        self, nets: Networks, latents: torch.Tensor, recipe: Recipe | None = None
    ) -> Iterator[torch.Tensor]:
        vae: Any = nets["vae"]
        options = {**self._options, **(recipe.options if recipe is not None else {})}

        def decoded(part: torch.Tensor) -> torch.Tensor:
            frames = vae.decode(part.to(nets.device) / SCALING, pieces=self._pieces)
            return frames.add_(1).div_(2)

        if self._single:
            for one in latents.split(1, dim=2):
                yield decoded(one)
        elif options.get("bulk_decode"):
            yield decoded(latents)
        else:
            window, forward = window_of(options), bool(options.get("f1"))
            yield from soft_appended(decoded, latents, window, forward=forward)

    def _encoded(self, nets: Networks, clip: Clip) -> tuple[Record, ...]:
        if self._single:
            return (self._single_record(nets, clip),)
        if not clip.target:
            return (self._start_record(nets, clip),)
        options = {**self._options, **clip.options}
        window, forward = window_of(options), bool(options.get("f1"))
        count = layout.sections_in(len(clip.frames), window)
        if not count:
            raise DataError(
                f"{clip.name} has {counted(len(clip.frames), 'frame')}, and a section of {window} latent frames "
                f"takes {layout.frames_of(1, window)}.",
                fix="Give a longer clip; images are trained with --one_frame.",
            )
        frames = clip.frames[: layout.frames_of(count, window)]
        latents = self._latents(nets, frames, self._generator(clip))
        embeddings = self._tokens(nets, frames[0])
        return tuple(
            Record({**record, "image_embeddings": embeddings})
            for record in caching.section_records(latents, window, forward=forward)
        )

    def _start_record(self, nets: Networks, clip: Clip) -> Record:
        """What a video to make starts from: its images, or grey latents and a black picture."""
        record = Record()
        black = np.zeros((1, *clip.frames.shape[1:3], 3), np.uint8)
        for i, picture in enumerate(clip.inputs.get("image", ()) or (black,)):
            record[f"latents_start_{i}"] = (
                self._grey(nets, clip) if picture is black else self._latents(nets, picture)
            )
            record[f"picture_embeddings_{i}"] = self._tokens(nets, picture[0])
        end = clip.input("end_image")
        if end is not None:
            record["latents_end"] = self._latents(nets, end)
        return record

    def _single_record(self, nets: Networks, clip: Clip) -> Record:
        controls = list(clip.inputs.get("control", ()))
        words = _trained(clip, len(controls)) if clip.target else single_of(clip.options)
        if clip.target and words.controls is not None:
            controls = controls[: len(words.controls)]
        options = {**self._options, **clip.options}
        found = layout.one_frame(
            window_of(options),
            target=words.target,
            controls=words.indices(len(controls)),
            post=words.post,
            with_2x=words.with_2x and not (clip.target and options.get("one_frame_no_2x")),
            with_4x=words.with_4x and not (clip.target and options.get("one_frame_no_4x")),
        )
        latents = [self._control(nets, clip, i, one) for i, one in enumerate(controls)]
        height, width = clip.frames.shape[1:3]
        if not latents:
            stride = self.task.shape.stride
            latents = [
                torch.zeros(self.task.shape.channels, 1, height // stride[1], width // stride[2])
            ]
        record = caching.indices(found)
        vae: Any = nets["vae"]
        record["latents_clean"] = caching.with_post(latents, found).to(vae.dtype)
        shown = clip.input("image")
        if shown is None:
            shown = controls[0] if controls else np.zeros((1, height, width, 3), np.uint8)
        record["image_embeddings"] = self._tokens(nets, shown[0][..., :3])
        if clip.target:
            record["latents"] = self._latents(nets, clip.frames[:1], self._generator(clip))
        return record

    def _control(
        self, nets: Networks, clip: Clip, number: int, picture: np.ndarray
    ) -> torch.Tensor:
        """Latents of a control image, 16 1 h w, hidden where its mask or its transparency says so."""
        latents = self._latents(nets, picture[:1, ..., :3])
        masks = clip.inputs.get("control_mask", ())
        mask = masks[number][0, ..., 0] if number < len(masks) else None
        if mask is None and picture.shape[-1] == 4:
            mask = picture[0, ..., 3]
        if mask is None:
            return latents
        height, width = latents.shape[2:]
        return latents * caching.cell_mask(mask, width, height).to(latents)

    def _latents(
        self, nets: Networks, frames: np.ndarray, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Frames, uint8 F H W 3, to latents in the model's scale, 16 f h w."""
        vae: Any = nets["vae"]
        levels = torch.from_numpy(np.ascontiguousarray(frames)).to(nets.device)
        pixels = levels.permute(3, 0, 1, 2)[None].float().div_(127.5).sub_(1)
        found = vae.encode(pixels, pieces=self._pieces, generator=generator)
        return (found[0] * SCALING).to(vae.dtype)

    def _grey(self, nets: Networks, clip: Clip) -> torch.Tensor:
        """Latents where there is no start image: of a picture of zeros, between black and white."""
        vae: Any = nets["vae"]
        pixels = torch.zeros(1, 3, 1, *clip.frames.shape[1:3], device=nets.device)
        return (vae.encode(pixels, pieces=self._pieces)[0] * SCALING).to(vae.dtype)

    def _tokens(self, nets: Networks, picture: np.ndarray) -> torch.Tensor:
        return encode_picture(nets["image_encoder"], picture)

    def _generator(self, clip: Clip) -> torch.Generator | None:
        if self._seed is None:
            return None
        # A clip's noise follows from what it shows, not from its neighbours or its name.
        seed = self._seed ^ zlib.crc32(np.ascontiguousarray(clip.frames).data)
        return torch.Generator().manual_seed(seed)


def _trained(clip: Clip, controls: int) -> OneFrame:
    """How a single frame is made, by the keys of the dataset file."""
    given = clip.options.get("fp_1f_clean_indices")
    wanted = 1 if given is None else len(given)
    if controls < wanted and not (given is None and controls == 0):
        raise DataError(
            f"{clip.name} has {counted(controls, 'control image')}, and fp_1f_clean_indices names {wanted}.",
            fix="Add control images, or name fewer indices.",
        )
    if given is None and controls > 1:
        raise DataError(
            f"{clip.name} has {counted(controls, 'control image')}, and nothing says where in time they are.",
            fix="Give fp_1f_clean_indices in the dataset file: [0, 10], say.",
        )
    return OneFrame(
        target=clip.options.get("fp_1f_target_index"),
        controls=None if given is None else tuple(given),
        post=not clip.options.get("fp_1f_no_post"),
    )


def _as_computed(value: torch.Tensor) -> torch.Tensor:
    # In the dtype that is computed in, as this model was sampled with from the beginning.
    if torch.is_autocast_enabled(value.device.type):
        return value.to(torch.get_autocast_dtype(value.device.type)).float()
    return value
