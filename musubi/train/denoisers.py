"""The denoisers of a run: their task, and which of their weights are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from musubi.config.options import expert_ending, own_options, paths
from musubi.config.task import Choice, choose_task
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError
from musubi.flow.experts import Experts
from musubi.generate.pipeline import compute_dtype
from musubi.memory.turns import Turns
from musubi.plugin import Architecture, Report, Task
from musubi.train import adapters
from musubi.train.trainable import FullModel, Several, Trainable
from musubi.weights.dtypes import dtype_name, parse_dtype
from musubi.weights.load import inspect

if TYPE_CHECKING:
    from accelerate import Accelerator

Autocast = Callable[[], AbstractContextManager[Any]]


def choose(config: TrainConfig, architecture: Architecture) -> Choice:
    """Find the task from the files and `--task`.

    Raises:
        ConfigError: They contradict each other, or the task has no such denoiser.
    """
    files = paths(config, architecture)
    own = own_options(config, architecture)
    denoisers = [c for c in architecture.components if c.role == "dit" and c.name in files]
    if not denoisers:
        architecture.path_of(architecture.dit.name, files)
    choices = [
        choose_task(
            architecture,
            config.task,
            inspect(one, files[one.name]).numbers,
            files[one.name],
            given=files,
            options=own,
        )
        for one in denoisers
    ]
    for one in denoisers:
        if one.name not in choices[0].task.denoisers:
            raise ConfigError(
                f"The task {choices[0].task.name!r} has no {one.name}.",
                fix=f"Leave out --{one.name}, or give another --task.",
            )
    return choices[0]


def given(config: TrainConfig, architecture: Architecture, task: Task) -> list[str]:
    """Names of the task's denoisers that have a file: these are trained."""
    files = paths(config, architecture)
    return [name for name in task.denoisers if name in files]


def turns(
    config: TrainConfig, experts: Experts, device: torch.device, report: Report
) -> Turns | None:
    """What moves denoisers that rest to host memory; None: all stay on the device."""
    if not config.offload_inactive_dit:
        return None
    if len(experts.intervals) < 2:
        report.warn("--offload_inactive_dit changes nothing: there is one denoiser.")
        return None
    return Turns(device, report)


def trainable(
    config: TrainConfig,
    architecture: Architecture,
    denoisers: Mapping[str, nn.Module],
    report: Report,
    turns: Turns | None = None,
) -> Trainable:
    """The trained weights of each denoiser.

    Raises:
        ConfigError: `--network_weights` with several of them, or what `adapters.create` refuses.
    """
    parts: dict[str, Trainable] = {}
    for name, dit in denoisers.items():
        if turns is not None:
            turns.take([name])  # adapters are made where the weights beside them are
        parts[name] = _part(config, architecture, name, dit, report)
    if len(parts) == 1:
        return next(iter(parts.values()))
    if config.network_weights is not None:
        raise ConfigError(
            "--network_weights is one file, and several denoisers are trained.",
            fix=f"Train them one after the other, or leave it out: {', '.join(parts)}.",
        )
    return Several(parts, endings(architecture, denoisers))


def _part(
    config: TrainConfig, architecture: Architecture, name: str, dit: nn.Module, report: Report
) -> Trainable:
    dtype = parse_dtype(config.save_precision)
    component = architecture.component(name)
    if config.full:
        return FullModel(dit, save_dtype=dtype, fp32=component.traits.fp32)
    return adapters.create(
        dit, config, architecture, component=component, save_dtype=dtype, report=report
    )


def endings(architecture: Architecture, denoisers: Iterable[str]) -> dict[str, str]:
    """Denoiser → the ending of its file names; empty if only one is trained."""
    names = list(denoisers)
    if len(names) == 1:
        return {names[0]: ""}
    parts = {name: architecture.component(name) for name in names}
    return {name: expert_ending(architecture, part) for name, part in parts.items()}


def autocast(accelerator: Accelerator, dit: nn.Module, report: Report) -> Autocast:
    """Make the function that gives the autocast context of the network."""
    if accelerator.mixed_precision != "no":
        return cast(Autocast, accelerator.autocast)
    # Weights in half precision compute in it; without autocast they would meet float32.
    dtype = compute_dtype(dit)
    if dtype == torch.float32:
        return nullcontext
    report.note(f"The DiT's weights are {dtype_name(dtype)}, and so it computes.")
    return lambda: torch.autocast(accelerator.device.type, dtype=dtype)
