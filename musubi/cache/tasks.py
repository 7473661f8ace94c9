"""What a caching command needs to know before it looks at a file: the task, its encoders, the device."""

from __future__ import annotations

import os

import torch

from musubi.cache.header import Kind
from musubi.config.cache import CacheCheckConfig, EncodingOptions
from musubi.config.dataset import named_keys
from musubi.config.options import own_options, paths
from musubi.config.task import choose_task
from musubi.errors import ConfigError
from musubi.plugin.architecture import Architecture, Component, Task
from musubi.sharing import launched

_MOST_THREADS = 8


def task_of(config: EncodingOptions | CacheCheckConfig, architecture: Architecture) -> Task:
    """The task whose records a caching command means: `--task`, else the first that uses every file
    that is given and has every input that the dataset file names.

    Raises:
        ConfigError: No such task.
    """
    given = paths(config, architecture)
    own = own_options(config, architecture)
    named = () if config.task else named_keys(config.dataset_config)
    return choose_task(architecture, config.task, given=given, named=named, options=own).task


def encoders_of(architecture: Architecture, task: Task, kind: Kind) -> tuple[Component, ...]:
    """The components that make a task's media or text records."""
    roles = ("text",) if kind == "text" else ("vae", "image")
    return tuple(c for c in map(architecture.component, task.components) if c.role in roles)


def threads(asked: int | None) -> int:
    """Threads that decode: what was asked for, else all cores but one and at most eight.

    Processes that a launcher started on this computer share the cores.
    """
    cores = (os.cpu_count() or 2) // launched().here
    return asked or max(1, min(_MOST_THREADS, cores - 1))


def device_of(text: str | None) -> torch.device:
    """The device to work on; for "cuda", each process that a launcher started has one of its own.

    Raises:
        ConfigError: It is no device, or not in this computer.
    """
    if text is None:
        return _own("cuda") if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ConfigError(
            f"--device {text} is no device.", fix="Write cpu, cuda, or cuda:0."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device {text}: PyTorch finds no CUDA device.",
            fix="Use --device cpu, or install a PyTorch built for your GPU.",
        )
    return _own(text) if text == "cuda" else device


def _own(text: str) -> torch.device:
    """The GPU of this process: the one that PyTorch uses from now on."""
    me = launched()
    if me.world == 1:
        return torch.device(text)
    count = torch.cuda.device_count()
    if me.here > count:
        raise ConfigError(
            f"The launcher started {me.here} processes here, and there are {count} GPUs.",
            fix=f"Start at most {count}: --num_processes with accelerate launch, --nproc-per-node "
            "with torchrun.",
        )
    torch.cuda.set_device(me.local)
    return torch.device("cuda", me.local)
