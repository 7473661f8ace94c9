"""One loaded model: recipes in, latents and frames out. Training's previews use it too."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from musubi import stopping
from musubi.cache.batch import batch_of
from musubi.cache.store import check_record
from musubi.config.recipe import NEGATIVE, texts_of
from musubi.errors import CheckpointError, RunError
from musubi.flow import schedules, solvers
from musubi.flow.experts import Experts
from musubi.flow.times import mix
from musubi.generate.guidance import guided
from musubi.generate.inputs import check, clip_for, has_media, prompt_for, seen_paths
from musubi.generate.steps import Steps
from musubi.memory.apply import park as move_to
from musubi.memory.turns import Turns
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

Failed = Callable[[Recipe, Exception], None]
"""`(recipe, error)`: called for a recipe that cannot be made."""


class _Trial:
    """Recipes that are prepared together, with separate failures."""

    def __init__(self, failed: Failed | None) -> None:
        self._failed = failed
        self._out: set[int] = set()

    @contextmanager
    def of(self, recipes: Sequence[Recipe]) -> Iterator[None]:
        """Inside this context, an exception is a failure of these recipes, or of all if a network
        cannot be loaded.
        """
        try:
            yield
        except Exception as error:
            if self._failed is None or isinstance(error, CheckpointError):
                raise
            for recipe in recipes:
                if id(recipe) not in self._out:
                    self._out.add(id(recipe))
                    self._failed(recipe, error)

    def left(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        """The recipes that did not fail."""
        return [recipe for recipe in recipes if id(recipe) not in self._out]


class SectionWatch:
    """Gets the sections of a rollout; this class does nothing with them.

    `musubi generate` saves them to disk, so that the user can watch the finished sections of a
    video and continue it later.
    """

    def solved(self, number: int) -> torch.Tensor | None:
        """The latents of a section that was made before; None: the section must be made."""
        return None

    def made(self, number: int, latents: torch.Tensor) -> None:
        """Called with the latents of a section that was just made."""

    def so_far(self, number: int, latents: torch.Tensor) -> None:
        """Called with the latents of the video so far, before section `number` is made."""


class Pipeline:
    """The phases of generation over one set of networks.

    Text encoders are loaded one after the other, encode all prompts, and are freed; then the DiT
    denoises; then the VAE decodes. Each distinct prompt is encoded once.

    Args:
        architecture: The architecture of the networks.
        task: What is made.
        runtime_options: The architecture's own options, for its runtime.
        nets: The networks.
        device: Where to compute.
        dit_dtype: The dtype that the DiT computes in, under autocast; None: the dtype of its
            weights.
        report: Where progress is shown.
        denoisers: Name → a denoiser to use instead of the one in `nets`, such as the one in
            training. It is never moved, freed or switched between training and evaluation mode
            here.

    Attributes:
        park: Move networks that are not in use to host memory, instead of dropping them: set this
            when more prompts will follow.
        park_experts: The same for denoisers that are not in use while another one is.
        turns: Moves the denoisers in `denoisers` to the device when they are used; None: all of them
            are there.
        keep: Names of small networks to move to host memory too, since several prompts need them.
    """

    park: bool = False
    park_experts: bool = False
    turns: Turns | None = None

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
        denoisers: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.architecture = architecture
        self.task = task
        self.nets = nets
        self.device = torch.device(device)
        self.dit_dtype = dit_dtype
        self.report: Report = report if report is not None else Quiet()
        self.denoisers = dict(denoisers or {})
        self.runtime: Runtime = architecture.runtime(architecture, task, runtime_options)
        known = [name for name in task.denoisers if name in nets or name in self.denoisers]
        self.experts = Experts(task, runtime_options, known or None)
        self.keep: set[str] = set()
        self._texts: dict[Hashable, Record] = {}
        self._media: dict[Hashable, Record] = {}
        self._used: set[str] = set()
        self._working: str | None = None
        self._steps = Steps()

    @torch.no_grad()
    def prepare(self, recipes: Sequence[Recipe], failed: Failed | None = None) -> list[Recipe]:
        """Encode everything that these recipes need and that is not encoded yet. Each encoder is
        loaded once.

        Args:
            recipes: What will be made.
            failed: Called with each recipe that cannot be prepared, and the error; the others go
                on. None: the first failure is raised.

        Returns:
            The recipes that can be made.

        Raises:
            MusubiError: An input of a recipe is missing or cannot be read, or a network cannot be
                loaded.
        """
        trial = _Trial(failed)
        for recipe in recipes:
            with trial.of([recipe]):
                check(recipe, self.task)
        wanted: dict[Hashable, list[tuple[str, Recipe]]] = {}
        for recipe in trial.left(recipes):
            with trial.of([recipe]):
                for text in texts_of(recipe, self.task).values():
                    key = (text, seen_paths(recipe, self.task))
                    wanted.setdefault(key, []).append((text, recipe))
        for component in self.architecture.of_role("text", self.task):
            missing = {k: v for k, v in wanted.items() if (component.name, k) not in self._texts}
            if not missing:
                continue
            with self._using(component.name):
                for key, uses in missing.items():
                    with trial.of([recipe for _, recipe in uses]):
                        prompt = prompt_for(*uses[0], self.task)
                        (record,) = self.runtime.encode_text(self.nets, component.name, [prompt])
                        self._texts[component.name, key] = _on(record, torch.device("cpu"))
        self._prepare_media(trial.left(recipes), trial)
        return trial.left(recipes)

    def encode(self, recipe: Recipe) -> dict[str, Conditioning]:
        """The conditioning of each of the recipe's texts, by name, on the device.

        There is no negative conditioning if it is not used: with a guidance scale of 1 the network
        is called once per step.
        """
        self.prepare([recipe])
        texts = texts_of(recipe, self.task)
        return {name: self._condition(recipe, text) for name, text in texts.items()}

    @torch.no_grad()
    def latents(self, recipe: Recipe, watch: SectionWatch | None = None) -> torch.Tensor:
        """Denoise: float32 1 C F H W, on the device.

        Args:
            recipe: What to make.
            watch: Gets the sections, and returns those that were made before.

        Raises:
            RunError: The network's output is not finite.
        """
        watch = watch or SectionWatch()
        given = self.encode(recipe)
        self._steps = Steps(recipe, self.task.sampling)
        rollout = self.runtime.rollout(recipe, next(iter(given.values())), self.device)
        section = next(rollout)
        number = 0
        while True:
            if section.so_far is not None:
                watch.so_far(number, section.so_far)
            x = watch.solved(number)
            if x is None:
                x = self._solve(recipe, section, given)
                watch.made(number, x)
            number += 1
            try:
                section = rollout.send(x.to(self.device))
            except StopIteration as finished:
                for line in self._steps.measured():
                    self.report.note(line)
                self._steps = Steps()
                return finished.value

    @torch.no_grad()
    def frames(
        self, latents: torch.Tensor, recipe: Recipe | None = None, *, deep: bool = False
    ) -> Iterator[np.ndarray]:
        """Decode latents (1) C F H W to uint8 frames F H W 3, or to uint16 ones when `deep`, in one
        piece or in several in the order of time.

        Args:
            latents: What to decode, on any device; the runtime moves as much as it decodes at once.
            recipe: The recipe of the latents, if known.
            deep: Return 16-bit frames instead of 8-bit ones.

        Raises:
            RunError: The VAE's output is not finite.
        """
        latents = latents if latents.ndim == 5 else latents[None]
        names = [c.name for c in self.architecture.of_role("vae", self.task)]
        with self._using(*names):
            for pictures in self.runtime.decode(self.nets, latents, recipe):
                if not pictures.isfinite().all():
                    raise RunError(
                        "The decoded frames are not finite.",
                        fix="Try --vae_dtype float32 or bfloat16.",
                    )
                yield np.stack([_levels(picture, deep) for picture in pictures[0].unbind(1)])

    def drop(self) -> None:
        """Drop the networks of `keep`; call this when no more prompts follow."""
        kept, self.keep = self.keep, set()
        for name in kept:
            self._rest(name)

    def free(self) -> None:
        """Park or drop the denoisers, unless the caller passed them in."""
        for name in self.task.denoisers:
            if name not in self.denoisers:
                self._rest(name)

    def _solve(
        self, recipe: Recipe, section: Section, given: Mapping[str, Conditioning]
    ) -> torch.Tensor:
        positive = given[section.text].plus(**section.inputs)
        negative = given[NEGATIVE].plus(**section.inputs) if NEGATIVE in given else None
        solver = self.task.sampling.solver_names.get(recipe.solver, recipe.solver)
        levels, times = self._levels(recipe, section, solver)
        x = section.noise
        if section.clean is not None:
            taken = schedules.steps_taken(recipe.steps, section.strength)
            levels, times = levels[-taken - 1 :], times[-taken:]
            x = mix(section.clean, x, levels[:1].to(x.device))
        told = [time / 1000 for time in times.tolist()]
        self._steps.start(len(told), positive, negative)
        inside = guided(self._call, positive, negative, recipe, told, self.task.guidance)

        def predict(x: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
            self._choose(told[i])
            self._steps.step = i
            return inside(x, t, i)

        with self.report.progress("Denoising", len(times), unit="step") as bar:

            def stepped(step: int, x: torch.Tensor) -> None:
                bar.advance()
                stopping.check()  # training holds a signal back, and a preview need not be whole

            x = solvers.solve(solver, predict, x, levels, times, stepped, seed=recipe.seed)
        if not x.isfinite().all():
            raise RunError(
                f"The latents of {_short(recipe.prompt)!r} (seed {recipe.seed}) are not finite.",
                fix="Try --dit_dtype bfloat16 instead of float16, or a LoRA multiplier nearer to 0.",
            )
        return x

    def _levels(
        self, recipe: Recipe, section: Section, solver: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The noise levels of a section, and the noise level that the network gets at each step."""
        if self.task.sigmas is not None:
            tokens = self.task.shape.tokens(*section.noise.shape[-3:])
            levels = torch.as_tensor(self.task.sigmas(recipe, tokens))
        else:
            shift = 1.0 if recipe.flow_shift is None else recipe.flow_shift
            levels = schedules.sigmas(solver, recipe.steps, shift)
        return levels, schedules.timesteps(solver, levels)

    # denoisers: one at a time

    def _choose(self, t: float) -> None:
        """Put the denoiser for this noise level on the device, and park or drop the previous one."""
        name = self.experts.at(t)
        if name == self._working:
            return
        if self._working is not None and self._working not in self.denoisers:
            self._rest(self._working, park=self.park or self.park_experts)
        if self.turns is not None:
            self.turns.take([name])
        self._working = name

    def _call(self, x: torch.Tensor, t: torch.Tensor, given: Conditioning) -> torch.Tensor:
        """One call of the current denoiser."""
        assert self._working is not None
        dit = self.denoisers.get(self._working)
        if dit is None:
            dit = self._awake(self._working)
        dtype = self.dit_dtype if self.dit_dtype is not None else compute_dtype(dit)
        stacks = self.architecture.component(self._working).traits.stacks
        with _autocast(self.device, dtype):
            return self._steps.run(
                dit, stacks, given, lambda: self.runtime.predict(dit, x, t, given)
            ).float()

    def _condition(self, recipe: Recipe, text: str) -> Conditioning:
        record: Record = {}
        key = (text, seen_paths(recipe, self.task))
        for component in self.architecture.of_role("text", self.task):
            record |= self._texts[component.name, key]
        record |= self._media.get(_media_key(recipe), {})
        masks = {name: tensor for name, tensor in record.items() if is_mask(name)}
        record = Record(_on(record, self.device) | masks)
        with torch.no_grad():
            return self.runtime.condition(batch_of([record], self.task.schema))

    def _prepare_media(self, recipes: Sequence[Recipe], trial: _Trial) -> None:
        missing: dict[Hashable, list[Recipe]] = {}
        for recipe in recipes:
            if has_media(recipe.options, self.task) and _media_key(recipe) not in self._media:
                missing.setdefault(_media_key(recipe), []).append(recipe)
        encoders = (
            c for role in ("vae", "image") for c in self.architecture.of_role(role, self.task)
        )
        names = [c.name for c in encoders if c.name in self.nets]
        try:
            for name in names if missing else ():
                if self._parks(name):
                    self._awake(name)
            for key, same in missing.items():
                with trial.of(same):
                    clip = clip_for(same[0], self.task)
                    ((record, *_),) = self.runtime.encode_media(self.nets, [clip])
                    check_record(record, self.task.schema.media, clip.name, complete=False)
                    self._media[key] = _on(record, torch.device("cpu"))
        finally:
            for name in names if missing else ():
                self._rest(name)

    @contextmanager
    def _using(self, *names: str) -> Iterator[None]:
        try:
            for name in names:
                self._awake(name)
            yield
        finally:
            for name in names:
                self._rest(name)

    def _awake(self, name: str) -> nn.Module:
        network = self.nets[name]
        self._used.add(name)
        return move_to(network, self.device) if self._parks(name) else network

    def _parks(self, name: str) -> bool:
        if name in self.keep:
            return True
        return self.park or (self.park_experts and name in self.task.denoisers)

    def _rest(self, name: str, *, park: bool | None = None) -> None:
        if name == self._working:
            self._working = None
        if not (self.park or name in self.keep if park is None else park):
            self.nets.free(name)
        elif name in self._used:
            move_to(self.nets[name], torch.device("cpu"))
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that most of a network's weights are stored in.

    8-bit weights compute in the dtype of the other weights, or in bfloat16 if there are none.
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


def _media_key(recipe: Recipe) -> Hashable:
    options = tuple(sorted((k, repr(v)) for k, v in recipe.options.items()))
    return recipe.width, recipe.height, recipe.frames, options


def _on(record: Mapping[str, torch.Tensor], device: torch.device) -> Record:
    return Record({name: tensor.to(device) for name, tensor in record.items()})


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
