"""The workload of a plan: the networks of a command and their sizes, from files or as published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musubi.config.options import Options, own_options, paths
from musubi.config.plan import PlanConfig, as_plan
from musubi.config.recipe import check_size
from musubi.config.task import Choice, choose_task, published
from musubi.errors import CheckpointError, ConfigError
from musubi.estimate.record import Case
from musubi.estimate.step import Optimizer
from musubi.lora.options import Asked, asked
from musubi.plan.buckets import Bucket, of_dataset
from musubi.plan.requests import Request, previews, requests
from musubi.plugin import Architecture, Component, LoraTargets, Report, Task
from musubi.plugin.architecture import Role
from musubi.weights.contents import Inspection, inspect
from musubi.weights.dtypes import parse_dtype


@dataclass(frozen=True)
class Network:
    """A component at its size.

    Args:
        component: The component.
        numbers: The arguments that it is built from.
        dtype: The dtype that its weights are loaded in.
    """

    component: Component
    numbers: Mapping[str, Any]
    dtype: torch.dtype


@dataclass(frozen=True)
class NewLora:
    """Attaches the adapters that the options ask for."""

    targets: LoraTargets
    asked: Asked

    def __call__(self, module: nn.Module) -> Sequence[nn.Parameter]:
        made = self.asked.create(module, self.targets)
        made.attach()
        made.train()
        return list(made.parameters())

    def __hash__(self) -> int:
        return hash((id(self.targets), self.asked))


@dataclass(frozen=True)
class FullTraining:
    """Trains the network itself."""

    def __call__(self, module: nn.Module) -> Sequence[nn.Parameter]:
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return [p for p in module.parameters() if p.requires_grad]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Everything that a plan is computed from.

    Attributes:
        trains: Whether the plan is for training.
        networks: Component name → the network; those of unknown size are missing.
        buckets: The video sizes, the largest first.
        case: The DiT at the largest bucket.
        optimizer: The optimizer in training.
        steps: For generation: how many denoising steps of the case's size the command makes.
        previews: For training: the previews.
    """

    architecture: Architecture
    choice: Choice
    trains: bool
    networks: Mapping[str, Network]
    buckets: tuple[Bucket, ...]
    case: Case
    optimizer: Optimizer
    options: Mapping[str, Any]
    steps: float = 0.0
    previews: tuple[Request, ...] = ()

    @property
    def task(self) -> Task:
        """The task."""
        return self.choice.task

    def used(self, *roles: Role) -> list[Network]:
        """The task's networks of these roles; an empty list if the size of one is unknown."""
        names = [c.name for r in roles for c in self.architecture.of_role(r, self.task)]
        found = [self.networks[name] for name in names if name in self.networks]
        return found if len(found) == len(names) else []

    def at(self, bucket: Bucket) -> Case:
        """The DiT at the size of a bucket."""
        return sized(self.case, bucket)


def sized(case: Case, bucket: Bucket) -> Case:
    """The same at another size."""
    return replace(
        case, width=bucket.width, height=bucket.height, frames=bucket.frames, batch=bucket.batch
    )


def workload(
    config: Options,
    architecture: Architecture,
    *,
    trains: bool,
    report: Report,
    buckets: Sequence[Bucket] | None = None,
) -> Workload:
    """Build the workload from the options of `train`, `generate` or `plan`.

    Args:
        config: The options.
        architecture: Whose networks.
        trains: Whether training is meant.
        report: Shows the survey of a dataset.
        buckets: The video sizes, if they are known; else they are found from the options.

    Raises:
        ConfigError: A task, a size or a LoRA argument is not possible.
        CheckpointError: A file is something else.
        DataError: The dataset gives nothing.
    """
    config = as_plan(config, architecture)
    networks = networks_of(config, architecture)
    named = config.task or _variant(architecture, config.variant)
    given = paths(config, architecture)
    found_dits = [c for c in architecture.components if c.role == "dit" and c.name in given]
    first = found_dits[0] if found_dits else architecture.dit
    dit, path = networks.get(first.name), given.get(first.name)
    choice = choose_task(
        architecture,
        named,
        None if dit is None else dit.numbers,
        path,
        given=given if path is not None else None,
        options=own_options(config, architecture),
    )
    if dit is not None:
        networks = {architecture.dit.name: dit, **networks}
    if dit is None:
        variant = choice.variant or next(
            (v for v in architecture.variants if v.task == choice.task.name), None
        )
        if variant is None:
            raise ConfigError(
                f"The size of the {architecture.dit.name} is not known.",
                fix=f"Give --{architecture.dit.name} PATH.",
            )
        choice = Choice(architecture.task(variant.task), variant)
        dit = Network(architecture.dit, variant.numbers, _dtype(config, architecture.dit, None))
        networks = {architecture.dit.name: dit, **networks}
    asks = () if trains else requests(config, architecture, choice)
    found = buckets or _buckets(config, architecture, choice, asks, report)
    found = tuple(sorted(set(found), key=_size, reverse=True))
    calls = max((ask.calls for ask in asks), default=1)
    full = trains and config.full
    half = dit.dtype if dit.dtype in (torch.bfloat16, torch.float16) else None
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}
    mixed_precision = config.mixed_precision if trains else None
    case = Case(
        architecture=architecture,
        task=choice.task,
        numbers=dit.numbers,
        width=found[0].width,
        height=found[0].height,
        frames=found[0].frames,
        batch=found[0].batch,
        dtype=dit.dtype,
        compute=mixed[mixed_precision] or half if mixed_precision else half,
        attach=_attach(config, architecture) if trains else None,
        experts=len([name for name in choice.task.denoisers if name in given])
        or len(choice.task.denoisers),
        parked=config.offload_inactive_dit,
        whole=full,
        calls=calls,
        options=own_options(config, architecture),
    )
    return Workload(
        architecture=architecture,
        choice=choice,
        trains=trains,
        networks=networks,
        buckets=found,
        case=case,
        optimizer=Optimizer(
            name=config.optimizer_type,
            offload=config.optimizer_offload,
            average=config.ema_decay is not None,
        ),
        options=own_options(config, architecture),
        steps=_steps(asks, case),
        previews=_previews(config, architecture, choice) if trains else (),
    )


def largest(buckets: Sequence[Bucket]) -> Bucket:
    """The bucket that needs the most: the most pixels in a batch.

    Raises:
        ValueError: There is none.
    """
    return max(buckets, key=_size)


def _size(bucket: Bucket) -> tuple[int, int, int, int, int]:
    volume = bucket.width * bucket.height * bucket.frames
    return (volume * bucket.batch, volume, bucket.frames, bucket.width, bucket.height)


def networks_of(config: Options, architecture: Architecture) -> dict[str, Network]:
    """Component name → network: from its file, else as published; those of unknown size are missing.

    Raises:
        CheckpointError: A file is something else.
    """
    config = as_plan(config, architecture)
    given = paths(config, architecture)
    found = {}
    for component in architecture.components:
        path = given.get(component.name)
        if path is not None:
            seen = _seen(component, path, architecture)
            if seen is None:
                continue
            stored = Counter(seen.dtypes.values()).most_common(1)[0][0]
            sizes = dict.fromkeys(seen.dtypes.values(), 0)
            for name, dtype in seen.dtypes.items():
                sizes[dtype] += torch.Size(seen.shapes[name]).numel()
            stored = max(sizes, key=lambda d: sizes[d], default=stored)
            found[component.name] = Network(
                component, seen.numbers, _dtype(config, component, stored)
            )
        elif component.full:
            found[component.name] = Network(
                component, component.full, _dtype(config, component, None)
            )
    return found


def _seen(component: Component, path: Path, architecture: Architecture) -> Inspection | None:
    """What was found in a file; None if the file is of another component with the same option."""
    try:
        return inspect(component, path)
    except CheckpointError:
        for other in architecture.components:
            if other.option == component.option and other.name != component.name:
                inspect(other, path)
                return None
        raise


def _dtype(config: PlanConfig, component: Component, stored: torch.dtype | None) -> torch.dtype:
    asked_for = {
        "dit": config.dit_dtype,
        "vae": config.vae_dtype,
        "text": config.text_encoder_dtype,
        "image": config.image_encoder_dtype,
    }[component.role]
    if asked_for:
        return parse_dtype(asked_for)
    if component.role == "dit" and config.full:
        return torch.float32
    if component.dtype != "file":
        return parse_dtype(component.dtype)
    return torch.bfloat16 if stored is None or stored.itemsize == 1 else stored


def _variant(architecture: Architecture, asked: str | None) -> str | None:
    return None if asked is None else published(architecture, asked).name


def _buckets(
    config: PlanConfig,
    architecture: Architecture,
    choice: Choice,
    asks: Sequence[Request],
    report: Report,
) -> tuple[Bucket, ...]:
    if asks:
        return tuple(Bucket(ask.width, ask.height, ask.frames) for ask in asks)
    sized = config.width or config.height or config.frames
    if not sized and config.dataset_config is not None:
        return of_dataset(config, architecture, choice.task, Path(config.dataset_config), report)
    width, height = config.width_height or choice.sampling.size
    width, height = config.width or width, config.height or height
    frames = config.frames or config.video_length or choice.sampling.frames
    shape = choice.task.shape
    check_size(architecture, choice, width, height)
    if shape.fitting_frames(frames) != frames:
        raise ConfigError(
            f"{frames} frames: {architecture.title} takes {shape.period}k+1.",
            fix=f"Write --frames {shape.fitting_frames(frames)}.",
        )
    return (Bucket(width, height, frames, config.batch_size),)


def _steps(asks: Sequence[Request], case: Case) -> float:
    """The denoising steps of all requests, counted in steps of the largest one."""
    whole = case.width * case.height * case.frames * case.calls
    return sum(ask.steps * ask.volume * ask.calls / whole for ask in asks)


def _previews(
    config: PlanConfig, architecture: Architecture, choice: Choice
) -> tuple[Request, ...]:
    path = config.sample_prompts
    return () if path is None else previews(config, Path(path), architecture, choice)


def _attach(config: PlanConfig, architecture: Architecture) -> NewLora | FullTraining:
    if config.full:
        return FullTraining()
    targets = architecture.dit.traits.lora
    if targets is None:
        raise ConfigError(f"{architecture.title} takes no LoRA.", fix="Add --full.")
    found = asked(config)
    return NewLora(targets, replace(found, alpha=1.0, kind=replace(found.kind, init="default")))
