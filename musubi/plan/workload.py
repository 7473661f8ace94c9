"""What a plan is about: the networks of a command and their sizes, from files or as published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musubi.config.options import own_options, paths
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
        numbers: What it is built from.
        dtype: What its weights are loaded in.
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

    whole = True

    def __call__(self, module: nn.Module) -> Sequence[nn.Parameter]:
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return [p for p in module.parameters() if p.requires_grad]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Everything that a plan is computed from.

    Attributes:
        trains: Whether it is about training.
        networks: Component name → the network; those of unknown size are missing.
        buckets: What will be met, the largest first.
        case: The DiT at the largest bucket.
        optimizer: Of training.
        steps: Of generating: how many denoising steps like the case's the command takes.
        previews: Of training: what is drawn while it runs.
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
        """The task's networks of these roles; none when the size of one is not known."""
        names = [c.name for r in roles for c in self.architecture.of_role(r, self.task)]
        found = [self.networks[name] for name in names if name in self.networks]
        return found if len(found) == len(names) else []

    def at(self, bucket: Bucket) -> Case:
        """The DiT at the size of a bucket."""
        return sized(self.case, bucket)


def sized(case: Case, bucket: Bucket) -> Case:
    """The same at another size."""
    return Case(
        **{
            **{name: getattr(case, name) for name in case.__dataclass_fields__},
            "width": bucket.width,
            "height": bucket.height,
            "frames": bucket.frames,
            "batch": bucket.batch,
        }
    )


def workload(
    config: Any,
    architecture: Architecture,
    *,
    trains: bool,
    report: Report,
    buckets: Sequence[Bucket] | None = None,
) -> Workload:
    """What the options of `train`, `generate` or `plan` are about.

    Args:
        config: The options.
        architecture: Whose networks.
        trains: Whether training is meant.
        report: Shown the survey of a dataset.
        buckets: What will be met, where it is known; else it is found out.

    Raises:
        ConfigError: A task, a size or a LoRA argument that cannot be.
        CheckpointError: A file that is something else.
        DataError: A dataset that gives nothing.
    """
    networks = networks_of(config, architecture)
    named = getattr(config, "task", None) or _variant(
        architecture, getattr(config, "variant", None)
    )
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
    full = trains and bool(getattr(config, "full", False))
    half = dit.dtype if dit.dtype in (torch.bfloat16, torch.float16) else None
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}
    asked = getattr(config, "mixed_precision", None)
    case = Case(
        architecture=architecture,
        task=choice.task,
        numbers=dit.numbers,
        width=found[0].width,
        height=found[0].height,
        frames=found[0].frames,
        batch=found[0].batch,
        dtype=dit.dtype,
        compute=mixed[asked] or half if asked else half,
        attach=_attach(config, architecture, full) if trains else None,
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
            name=getattr(config, "optimizer_type", "adamw"),
            offload=bool(getattr(config, "optimizer_offload", False)),
            average=getattr(config, "ema_decay", None) is not None,
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


def networks_of(config: Any, architecture: Architecture) -> dict[str, Network]:
    """Component name → network: from its file, else as published; those of unknown size are missing.

    Raises:
        CheckpointError: A file is something else.
    """
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
    """What a file shows; None when it is another component's that has the same option."""
    try:
        return inspect(component, path)
    except CheckpointError:
        for other in architecture.components:
            if other.option == component.option and other.name != component.name:
                inspect(other, path)
                return None
        raise


def _dtype(config: Any, component: Component, stored: torch.dtype | None) -> torch.dtype:
    flags = {
        "dit": "dit_dtype",
        "vae": "vae_dtype",
        "text": "text_encoder_dtype",
        "image": "image_encoder_dtype",
    }
    asked = getattr(config, flags.get(component.role, ""), None)
    if asked:
        return parse_dtype(asked)
    if component.role == "dit" and getattr(config, "full", False):
        return torch.float32
    if component.dtype != "file":
        return parse_dtype(component.dtype)
    return torch.bfloat16 if stored is None or stored.itemsize == 1 else stored


def _variant(architecture: Architecture, asked: str | None) -> str | None:
    return None if asked is None else published(architecture, asked).name


def _buckets(
    config: Any,
    architecture: Architecture,
    choice: Choice,
    asks: Sequence[Request],
    report: Report,
) -> tuple[Bucket, ...]:
    batch = getattr(config, "batch_size", None) or 1
    if asks:
        return tuple(Bucket(ask.width, ask.height, ask.frames) for ask in asks)
    asked = [getattr(config, name, None) for name in ("width", "height", "frames")]
    dataset = getattr(config, "dataset_config", None)
    if not any(asked) and dataset is not None:
        return of_dataset(config, architecture, choice.task, Path(dataset), report)
    width, height = getattr(config, "width_height", None) or choice.sampling.size
    frames = getattr(config, "video_length", None) or choice.sampling.frames
    width, height, frames = asked[0] or width, asked[1] or height, asked[2] or frames
    shape = choice.task.shape
    check_size(architecture, choice, width, height)
    if shape.fitting_frames(frames) != frames:
        raise ConfigError(
            f"{frames} frames: {architecture.title} takes {shape.period}k+1.",
            fix=f"Write --frames {shape.fitting_frames(frames)}.",
        )
    return (Bucket(width, height, frames, batch),)


def _steps(asks: Sequence[Request], case: Case) -> float:
    """Of all requests, in steps of the largest."""
    whole = case.width * case.height * case.frames * case.calls
    return sum(ask.steps * ask.volume * ask.calls / whole for ask in asks)


def _previews(config: Any, architecture: Architecture, choice: Choice) -> tuple[Request, ...]:
    path = getattr(config, "sample_prompts", None)
    return () if path is None else previews(config, Path(path), architecture, choice)


def _attach(config: Any, architecture: Architecture, full: bool) -> NewLora | FullTraining:
    if full:
        return FullTraining()
    targets = architecture.dit.traits.lora
    if targets is None:
        raise ConfigError(f"{architecture.title} takes no LoRA.", fix="Add --full.")
    found = asked(config)
    return NewLora(targets, replace(found, alpha=1.0, kind=replace(found.kind, init="default")))
