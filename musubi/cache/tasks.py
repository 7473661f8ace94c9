"""What a caching command needs to know before it looks at a file: the task, its encoders, the device."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from musubi.cache.header import Kind
from musubi.config import task as tasks
from musubi.errors import ConfigError
from musubi.plugin.architecture import Architecture, Component, Task

_MOST_THREADS = 8


def choose_task(architecture: Architecture, text: str | None, given: Iterable[str]) -> Task:
    """The task whose records are meant.

    Args:
        architecture: Whose tasks.
        text: The value of `--task`, a task or a variant, or None.
        given: Names of the components that have a file: without `text`, the first task that uses
            every one of them is meant.

    Raises:
        ConfigError: No such task.
    """
    if text is not None:
        return tasks.choose_task(architecture, text).task
    names = set(given)
    for task in architecture.tasks:
        if names <= {*task.components, architecture.dit.name}:
            return task
    return architecture.tasks[0]


def encoders_of(architecture: Architecture, task: Task, kind: Kind) -> tuple[Component, ...]:
    """The components that make a task's media or text records."""
    roles = ("text",) if kind == "text" else ("vae", "image")
    return tuple(c for c in map(architecture.component, task.components) if c.role in roles)


def threads(asked: int | None) -> int:
    """Threads that decode: what was asked for, else all cores but one and at most eight."""
    return asked or max(1, min(_MOST_THREADS, (os.cpu_count() or 2) - 1))


def device_of(text: str | None) -> torch.device:
    """The device to encode on.

    Raises:
        ConfigError: It is no device, or not in this computer.
    """
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    return device
