"""The networks, the hooks and the runtime of the toy architecture."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from musubi.errors import CheckpointError, ConfigError
from musubi.plugin import (
    Architecture,
    Clip,
    Conditioning,
    Moment,
    Networks,
    Prompt,
    Recipe,
    Record,
    Section,
    Task,
)

WINDOW = 2  # latent frames of a section


class ToyBlock(nn.Module):
    """A layer that is trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B L D."""
        return x + torch.tanh(self.inner(x))


class ToyDenoiser(nn.Module):
    """Latents and what guides them, cell by cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.denoiser = nn.Linear(3 * 4, width)
        self.blocks = nn.ModuleList([ToyBlock(width) for _ in range(2)])
        self.out = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """`x` B 12 F H W, `told` B D: a velocity B 4 F H W."""
        shape = x.shape
        h = self.denoiser(x.flatten(2).movedim(1, -1).to(self.denoiser.weight.dtype))
        h = h * (1 + t.to(h)[:, None, None]) + told.to(h)[:, None]
        for block in self.blocks:
            h = block(h)
        return self.out(h).movedim(-1, 1).unflatten(2, shape[2:])


class ToyFolder(nn.Module):
    """An autoencoder that takes means of pixels, and repeats them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.folder = nn.Linear(3, 4)
        self.back = nn.Linear(4, 3)
        self.size = nn.Parameter(torch.zeros(width))

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames 3 F H W in [-1, 1]: latents 4 F' H/8 W/8."""
        small = F.avg_pool2d(frames.movedim(0, 1), 8)[::4]
        return self.folder(small.movedim(1, -1)).movedim(-1, 0)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents B 4 F H W: frames in [0, 1]."""
        big = self.back(latents.movedim(1, -1)).movedim(-1, 1).sigmoid()
        big = big.repeat_interleave(8, 3).repeat_interleave(8, 4)
        return torch.cat([big[:, :, :1], big[:, :, 1:].repeat_interleave(4, 2)], dim=2)


class ToyEye(nn.Module):
    """A picture's mean colour, in as many numbers as the denoiser is wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.eye = nn.Linear(3, width)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """uint8 F H W C: D."""
        return self.eye(picture[..., :3].float().mean((0, 1, 2)) / 255)


class ToyWords(nn.Module):
    """A row for each byte, and what a picture looks like in front of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(256, width)
        self.sight = nn.Linear(3, width)


def _inferred(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int) -> dict[str, int]:
    if name not in shapes:
        raise CheckpointError(f"It has no {name}.", fix="Give the toy's own file.")
    return {"width": shapes[name][axis]}


def infer_denoiser(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Numbers of a denoiser."""
    return _inferred(shapes, "denoiser.weight", 0)


def infer_folder(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Numbers of an autoencoder."""
    return _inferred(shapes, "size", 0)


def infer_eye(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Numbers of an image encoder."""
    return _inferred(shapes, "eye.weight", 0)


def infer_words(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Numbers of a text encoder."""
    return _inferred(shapes, "words.weight", 1)


# hooks


def check(recipe: Recipe) -> None:
    """Refuse a guidance scale below 0.

    Raises:
        ConfigError: It is.
    """
    if recipe.guidance_scale < 0:
        raise ConfigError("The toy takes no guidance below 0.", fix="Give --guidance_scale 2.")


def texts(recipe: Recipe) -> dict[str, str]:
    """A prompt for each section: what stands between two `;;;`, the last one for all that follow."""
    parts = [part.strip() for part in recipe.prompt.split(";;;")]
    return {f"section {i}": part for i, part in enumerate(parts)} | {
        "negative": recipe.negative_prompt
    }


def sigmas(recipe: Recipe, tokens: int) -> list[float]:
    """A line that is bent by the number of tokens."""
    bent = 1 + 1 / tokens
    return [(1 - i / recipe.steps) ** bent for i in range(recipe.steps + 1)]


def intervals(options: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Little noise for the first denoiser, much for the second."""
    return (0.0, options["boundary"]), (options["boundary"], 1.0)


def guided(
    call: Callable[[Conditioning], torch.Tensor],
    positive: Conditioning,
    negative: Conditioning,
    recipe: Recipe,
    moment: Moment,
) -> torch.Tensor:
    """Guidance that fades as the steps go."""
    scale = 1 + (recipe.guidance_scale - 1) * (1 - moment.step / moment.steps)
    unconditional = call(negative)
    return unconditional + scale * (call(positive) - unconditional)


class ToyRuntime:
    """The six verbs."""

    def __init__(self, architecture: Architecture, task: Task, options: Mapping[str, Any]) -> None:
        self.task = task
        self.outside = options["outside"]

    def encode_text(
        self, nets: Networks, component: str, prompts: Sequence[Prompt]
    ) -> list[Record]:
        words: Any = nets[component]
        records = []
        for prompt in prompts:
            ids = torch.tensor(list(prompt.text.encode())[:16], dtype=torch.long)
            rows = words.words(ids.to(nets.device))
            for picture in prompt.pictures.get("reference", ()):
                colour = torch.from_numpy(picture[..., :3].astype(np.float32)).mean((0, 1, 2))
                rows = torch.cat([words.sight(colour.to(rows) / 255)[None], rows])
            records.append(Record({"words": rows}))
        return records

    def encode_media(self, nets: Networks, clips: Sequence[Clip]) -> list[tuple[Record, ...]]:
        return [(self._record(nets, clip),) for clip in clips]

    def _record(self, nets: Networks, clip: Clip) -> Record:
        start = clip.frames[:1] if clip.target else clip.inputs["start"][0]
        eye: Any = nets["eye"]
        record = Record({"seen": eye(torch.from_numpy(start.copy()).to(nets.device))})
        pictures = {"latents": clip.frames if clip.target else None, "latents_start": start}
        pictures["latents_motion"] = clip.input("motion")
        for i, reference in enumerate(clip.inputs.get("reference", ())):
            height, width = (max(side // 8, 1) * 8 for side in reference.shape[1:3])
            cut = reference[:, :height, :width, :3]
            rest = ((0, 0), (0, height - cut.shape[1]), (0, width - cut.shape[2]), (0, 0))
            pictures[f"latents_reference_{i}"] = np.pad(cut, rest)
        vae: Any = nets["vae"]
        for name, found in pictures.items():
            if found is not None:
                pixels = torch.from_numpy(found.copy()).to(nets.device).permute(3, 0, 1, 2)
                record[name] = vae.encode(pixels.float() / 127.5 - 1)
        area = clip.input("area")
        if area is not None:
            small = F.avg_pool2d(torch.from_numpy(area[..., 0].astype(np.float32))[None], 8)[0]
            record["area"] = (small / 255).to(nets.device)
        return record

    def condition(self, batch: Mapping[str, Any]) -> Conditioning:
        words = [one.mean(0) if len(one) else one.new_zeros(one.shape[1]) for one in batch["words"]]
        told = torch.stack(words) + batch["seen"]
        for i, references in enumerate(batch.get("latents_reference", ())):
            for one in references:
                told[i] = told[i] + one.mean()
        latents, area = batch.get("latents"), batch.get("area")
        weight = None
        if latents is not None:
            weight = torch.ones_like(latents[:, :1])
            weight[:, :, 0] = 0  # the start is given
            if area is not None:
                weight = weight * (self.outside + (1 - self.outside) * area.amax(1)[:, None, None])
        motion = batch.get("latents_motion")
        if motion is not None and area is not None:
            motion = motion * area.amax(1)[:, None, None]
        inputs = {"told": told, "start": batch["latents_start"], "motion": motion}
        return Conditioning(inputs, latents=latents, weight=weight)

    def predict(
        self, dit: nn.Module, x: torch.Tensor, t: torch.Tensor, given: Conditioning
    ) -> torch.Tensor:
        start, motion = given.inputs["start"].to(x), given.inputs["motion"]
        start = torch.cat([start, start.new_zeros(x[:, :, 1:].shape)], dim=2)
        motion = torch.zeros_like(x) if motion is None else motion.to(x)
        frames = min(motion.shape[2], x.shape[2])
        motion = F.pad(motion[:, :, :frames], (0, 0, 0, 0, 0, x.shape[2] - frames))
        return dit(torch.cat([x, start, motion], dim=1), t, given.inputs["told"])

    def rollout(
        self, recipe: Recipe, given: Conditioning, device: torch.device
    ) -> Generator[Section, torch.Tensor, torch.Tensor]:
        shape = self.task.shape.latent_shape(recipe.width, recipe.height, recipe.frames)
        generator = torch.Generator().manual_seed(recipe.seed)
        names = [name for name in texts(recipe) if name != "negative"]
        made: list[torch.Tensor] = []
        frames = shape[1]
        while frames > 0:
            size = (1, shape[0], min(WINDOW, frames), *shape[2:])
            noise = torch.randn(size, generator=generator).to(device)
            inputs = {"start": made[-1][:, :, -1:]} if made else {}
            found = yield Section(
                noise=noise,
                inputs=inputs,
                text=names[min(len(made), len(names) - 1)],
                so_far=torch.cat(made, dim=2) if made else None,
            )
            made.append(found)
            frames -= found.shape[2]
        return torch.cat(made, dim=2)

    def decode(
        self, nets: Networks, latents: torch.Tensor, recipe: Recipe | None = None
    ) -> Iterator[torch.Tensor]:
        vae: Any = nets["vae"]
        whole = vae.decode(latents.to(nets.device).float())
        yield whole[:, :, :1]
        if whole.shape[2] > 1:
            yield whole[:, :, 1:]
