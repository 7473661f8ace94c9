"""Which task is meant: by `--task`, by what the checkpoint shows, and never against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi.errors import CheckpointError, ConfigError, did_you_mean
from musubi.plugin.architecture import Architecture, Sampling, Task, Variant


@dataclass(frozen=True)
class Choice:
    """A task, and the published variant when one is meant or recognised."""

    task: Task
    variant: Variant | None = None

    @property
    def sampling(self) -> Sampling:
        """The defaults of the variant where it has its own, else the task's."""
        if self.variant is not None and self.variant.sampling is not None:
            return self.variant.sampling
        return self.task.sampling

    def sampling_at(self, width: int, height: int) -> Sampling:
        """The defaults for that size."""
        if self.task.adjust is None:
            return self.sampling
        return self.task.adjust(self.sampling, width, height)


def choose_task(
    architecture: Architecture,
    text: str | None,
    numbers: Mapping[str, Any] | None = None,
    path: Path | None = None,
) -> Choice:
    """The task that `text` names, checked against the DiT's numbers; else the one they show.

    Args:
        architecture: Whose tasks.
        text: The value of `--task`: a variant, a task, or None.
        numbers: What the DiT's `infer` found in the checkpoint, when there is one.
        path: The checkpoint, for messages.

    Raises:
        ConfigError: No such task, or the checkpoint is made for another one.
        CheckpointError: The checkpoint is made for none of the tasks.
    """
    if text is None:
        return _recognised(architecture, numbers, path)
    choice = _named(architecture, text)
    for key, wanted in choice.task.requires.items() if numbers is not None else ():
        if numbers is not None and numbers.get(key) != wanted:
            fitting = [t.name for t in architecture.tasks if _fits(t, numbers)]
            raise ConfigError(
                f"--task {text} needs a checkpoint with {key} {wanted}, and {path or 'this one'} "
                f"has {key} {numbers.get(key)}.",
                fix=f"Give --task {' or '.join(fitting)}, or another --dit."
                if fitting
                else "Give another --dit.",
            )
    return choice


def published(architecture: Architecture, size: str) -> Variant:
    """The published variant of that name, or the first whose name ends so: `14B` for `t2v-14B`.

    Raises:
        ConfigError: There is none.
    """
    for variant in architecture.variants:
        if variant.name == size or variant.name.endswith(f"-{size}"):
            return variant
    raise ConfigError(
        f"{architecture.title} has no size {size!r}.",
        fix=did_you_mean(size, [v.name for v in architecture.variants]),
    )


def _named(architecture: Architecture, text: str) -> Choice:
    for variant in architecture.variants:
        if variant.name == text:
            return Choice(architecture.task(variant.task), variant)
    for task in architecture.tasks:
        if task.name == text:
            return Choice(task)
    names = [v.name for v in architecture.variants] + [t.name for t in architecture.tasks]
    raise ConfigError(
        f"{architecture.title} has no task {text!r}.",
        fix=f"{did_you_mean(text, names)} `musubi models show {architecture.name}` lists them all.",
    )


def _recognised(
    architecture: Architecture, numbers: Mapping[str, Any] | None, path: Path | None
) -> Choice:
    if numbers is None:
        return Choice(architecture.tasks[0])
    fitting = [t for t in architecture.tasks if _fits(t, numbers)]
    if not fitting:
        shown = ", ".join(f"{k} {v}" for k, v in numbers.items())
        raise CheckpointError(
            f"{path or 'The checkpoint'} ({shown}) is made for no task of {architecture.title}.",
            fix=f"`musubi models show {architecture.name}` lists the files that are known.",
        )
    for variant in architecture.variants:
        if variant.task == fitting[0].name and _has(numbers, variant.numbers):
            return Choice(fitting[0], variant)
    return Choice(fitting[0])


def _fits(task: Task, numbers: Mapping[str, Any]) -> bool:
    return _has(numbers, task.requires)


def _has(numbers: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(numbers.get(key) == value for key, value in wanted.items())
