"""One loaded model: recipes in, latents and frames out. Training's previews use it too."""

from __future__ import annotations

import gc
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from musubi import stopping
from musubi.errors import RunError
from musubi.flow import schedules, solvers
from musubi.flow.times import mix
from musubi.generate.guidance import guided, needs_negative
from musubi.generate.inputs import check, clip_for, has_media
from musubi.memory.apply import park
from musubi.plugin import (
    Architecture,
    Conditioning,
    Networks,
    Quiet,
    Recipe,
    Record,
    Report,
    Runtime,
    Section,
    Task,
    is_mask,
)


class Pipeline:
    """The phases of generation over one set of networks.

    Text encoders are loaded one after the other, encode all that is asked for, and are freed;
    then the DiT denoises; then the VAE decodes. Each distinct prompt is encoded once.

    Args:
        architecture: Whose networks these are.
        task: What is made.
        runtime_options: The architecture's own options, for its runtime.
        nets: The networks.
        device: Where to compute.
        dit_dtype: What the DiT computes in, under autocast; None: as its weights are stored.
        report: Where progress is shown.
        dit: The DiT to use instead of `nets`', such as the one in training; it is not moved, freed
            or switched between training and evaluation here.

    Attributes:
        park: Move networks that rest to host memory instead of dropping them: set it when more
            prompts will follow.
    """

    park: bool = False

    def __init__(
        self,
        architecture: Architecture,
        task: Task,
        runtime_options: Mapping[str, Any],
        nets: Networks,
        *,
        device: torch.device | str,
        dit_dtype: torch.dtype | None = None,
        report: Report | None = None,
        dit: nn.Module | None = None,
    ) -> None:
        self.architecture = architecture
        self.task = task
        self.nets = nets
        self.device = torch.device(device)
        self.dit_dtype = dit_dtype
        self.report: Report = report if report is not None else Quiet()
        self.dit = dit
        self.runtime: Runtime = architecture.runtime(architecture, task, runtime_options)
        self._texts: dict[tuple[str, str], Record] = {}
        self._media: dict[Hashable, Record] = {}
        self._used: set[str] = set()

    @torch.no_grad()
    def prepare(self, recipes: Sequence[Recipe]) -> None:
        """Encode what these recipes need and is not encoded yet: each encoder is loaded once.

        Raises:
            MusubiError: What a recipe starts from is missing or cannot be read.
        """
        for recipe in recipes:
            check(recipe, self.task)
        texts = dict.fromkeys(text for recipe in recipes for text in _texts(recipe))
        for component in self.architecture.of_role("text", self.task):
            missing = [text for text in texts if (component.name, text) not in self._texts]
            if not missing:
                continue
            with self._using(component.name):
                for text in missing:
                    (record,) = self.runtime.encode_text(self.nets, component.name, [text])
                    self._texts[component.name, text] = _on(record, torch.device("cpu"))
        self._prepare_media(recipes)

    def encode(self, recipe: Recipe) -> tuple[Conditioning, Conditioning | None]:
        """The positive and the negative conditioning, on the device.

        The negative one is None when nothing reads it: with a guidance scale of 1 (and no
        skip-layer guidance) the network is called once a step.
        """
        self.prepare([recipe])
        positive, *negative = [self._condition(recipe, text) for text in _texts(recipe)]
        return positive, negative[0] if negative else None

    @torch.no_grad()
    def latents(self, recipe: Recipe) -> torch.Tensor:
        """Denoise: float32 1 C F H W, on the device.

        Raises:
            RunError: The network answered with numbers that are not finite.
        """
        positive, negative = self.encode(recipe)
        rollout = self.runtime.rollout(recipe, positive, self.device)
        with self._denoiser() as dit:
            section = next(rollout)
            while True:
                given = positive.plus(**section.inputs)
                against = None if negative is None else negative.plus(**section.inputs)
                x = self._solve(dit, recipe, section, given, against)
                try:
                    section = rollout.send(x)
                except StopIteration as finished:
                    return finished.value

    @torch.no_grad()
    def frames(self, latents: torch.Tensor, *, deep: bool = False) -> np.ndarray:
        """Decode latents (1) C F H W to uint8 frames F H W 3, or to uint16 ones when `deep`.

        Raises:
            RunError: The VAE answered with numbers that are not finite.
        """
        latents = latents if latents.ndim == 5 else latents[None]
        (component,) = self.architecture.of_role("vae", self.task)
        with self._using(component.name):
            pictures = self.runtime.decode(self.nets, latents.to(self.device))[0]
            if not pictures.isfinite().all():
                raise RunError(
                    "The decoded frames are not finite.", fix="Try --vae_dtype float32 or bfloat16."
                )
            return np.stack([_levels(picture, deep) for picture in pictures.unbind(1)])

    def free(self) -> None:
        """Let the DiT rest, unless it was handed in."""
        if self.dit is None:
            self._rest(self.architecture.dit.name)

    def _solve(
        self,
        dit: nn.Module,
        recipe: Recipe,
        section: Section,
        positive: Conditioning,
        negative: Conditioning | None,
    ) -> torch.Tensor:
        levels = schedules.sigmas(recipe.solver, recipe.steps, recipe.flow_shift)
        times = schedules.timesteps(recipe.solver, levels)
        x = section.noise
        if section.clean is not None:
            taken = schedules.steps_taken(recipe.steps, section.strength)
            levels, times = levels[-taken - 1 :], times[-taken:]
            x = mix(section.clean, x, levels[:1].to(x.device))
        dtype = self.dit_dtype if self.dit_dtype is not None else compute_dtype(dit)

        def call(x: torch.Tensor, t: torch.Tensor, given: Conditioning) -> torch.Tensor:
            with _autocast(self.device, dtype):
                return self.runtime.predict(dit, x, t, given).float()

        predict = guided(call, positive, negative, replace(recipe, steps=len(times)))
        with self.report.progress("Denoising", len(times), unit="step") as bar:

            def stepped(step: int, x: torch.Tensor) -> None:
                bar.advance()
                stopping.check()  # training holds a signal back, and a preview need not be whole

            x = solvers.solve(recipe.solver, predict, x, levels, times, stepped, seed=recipe.seed)
        if not x.isfinite().all():
            raise RunError(
                f"The latents of {_short(recipe.prompt)!r} (seed {recipe.seed}) are not finite.",
                fix="Try --dit_dtype bfloat16 instead of float16, or a LoRA multiplier nearer to 0.",
            )
        return x

    def _condition(self, recipe: Recipe, text: str) -> Conditioning:
        record: Record = {}
        for component in self.architecture.of_role("text", self.task):
            record |= self._texts[component.name, text]
        record |= self._media.get(_media_key(recipe), {})
        varlen = {f.name for f in (*self.task.schema.text, *self.task.schema.media) if f.varlen}
        masks = {name: tensor for name, tensor in record.items() if is_mask(name)}
        record = Record(_on(record, self.device) | masks)
        batch = {k: [v] if k in varlen else v[None] for k, v in record.items()}
        with torch.no_grad():
            return self.runtime.condition(batch)

    def _prepare_media(self, recipes: Sequence[Recipe]) -> None:
        given = [recipe for recipe in recipes if has_media(recipe.options, self.task)]
        missing = {k: r for r in given if (k := _media_key(r)) not in self._media}
        encoders = (
            c for role in ("vae", "image") for c in self.architecture.of_role(role, self.task)
        )
        names = [c.name for c in encoders if c.name in self.nets]
        try:
            for name in names if missing and self.park else ():
                self._awake(name)
            for key, recipe in missing.items():
                clip = clip_for(recipe, self.task)
                ((record, *_),) = self.runtime.encode_media(self.nets, [clip])
                self._media[key] = _on(record, torch.device("cpu"))
        finally:
            for name in names if missing else ():
                self._rest(name)

    @contextmanager
    def _denoiser(self) -> Iterator[nn.Module]:
        if self.dit is not None:
            yield self.dit
            return
        yield self._awake(self.architecture.dit.name)

    @contextmanager
    def _using(self, name: str) -> Iterator[None]:
        self._awake(name)
        try:
            yield
        finally:
            self._rest(name)

    def _awake(self, name: str) -> nn.Module:
        network = self.nets[name]
        self._used.add(name)
        return park(network, self.device) if self.park else network

    def _rest(self, name: str) -> None:
        if not self.park:
            self.nets.free(name)
        elif name in self._used:
            park(self.nets[name], torch.device("cpu"))
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that most of a network's weights are stored in.

    Weights in 8 bits compute in what the rest is stored in; in bfloat16 when there is no rest.
    """
    counts: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        dtype = torch.bfloat16 if parameter.itemsize == 1 else parameter.dtype
        weight = 0 if parameter.itemsize == 1 else parameter.numel()
        counts[dtype] = counts.get(dtype, 0) + weight
    most = max(counts, key=lambda d: counts[d], default=torch.float32)
    return most if most in (torch.float32, torch.float16, torch.float64) else torch.bfloat16


def _levels(picture: torch.Tensor, deep: bool) -> np.ndarray:
    # 3 H W in [0, 1] → uint8 H W 3. A frame at a time: a long video in float32 is gigabytes.
    most, kind = (65535, np.uint16) if deep else (255, np.uint8)
    levels = picture.float().mul(most).round().clamp(0, most)
    return levels.permute(1, 2, 0).cpu().numpy().astype(kind)


def _autocast(device: torch.device, dtype: torch.dtype) -> Any:
    if dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(device.type, dtype=dtype)
    return nullcontext()


def _texts(recipe: Recipe) -> list[str]:
    return [recipe.prompt, *([recipe.negative_prompt] if needs_negative(recipe) else [])]


def _media_key(recipe: Recipe) -> Hashable:
    options = tuple(sorted((k, repr(v)) for k, v in recipe.options.items()))
    return recipe.width, recipe.height, recipe.frames, options


def _on(record: Mapping[str, torch.Tensor], device: torch.device) -> Record:
    return Record({name: tensor.to(device) for name, tensor in record.items()})


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
