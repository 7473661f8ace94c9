"""Find the task from `--task` and the checkpoint, and refuse contradictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    *,
    given: Iterable[str] | None = None,
    named: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Choice:
    """The task that `text` names, checked against the DiT's numbers; else the one they show.

    Args:
        architecture: Whose tasks.
        text: The value of `--task`: a variant, a task, or None.
        numbers: What the DiT's `infer` found in the checkpoint, when there is one.
        path: The checkpoint, for messages.
        given: Names of the components that have a file, where that is known: without `text`, a task
            is meant that uses every one of them.
        named: Keys that the dataset file uses: without `text`, and without an option that means
            another task, a task is meant that has an input for each that is one of an input.
        options: The architecture's own options: some mean another task.

    Raises:
        ConfigError: No such task, or the checkpoint is made for another one, or for several that
            differ in what they are given.
        CheckpointError: The checkpoint is made for none of the tasks.
    """
    if text is None:
        switched = any(o.task and (options or {}).get(o.name) for o in architecture.options)
        choice = _recognised(architecture, numbers, path, given, () if switched else named)
    else:
        choice = _named(architecture, text)
        _check_numbers(architecture, choice, text, numbers, path)
    return _switched(architecture, choice, options or {})


def _check_numbers(
    architecture: Architecture,
    choice: Choice,
    text: str,
    numbers: Mapping[str, Any] | None,
    path: Path | None,
) -> None:
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


def _switched(architecture: Architecture, choice: Choice, options: Mapping[str, Any]) -> Choice:
    """The task that options such as `--one_frame` turn this one into."""
    for option in architecture.options:
        if not option.task or not options.get(option.name):
            continue
        if choice.task.name not in (*option.task, *option.task.values()):
            raise ConfigError(
                f"--{option.name} means nothing for the task {choice.task.name!r}.",
                fix=f"Leave it out, or give --task {' or '.join(option.task)}.",
            )
        name = option.task.get(choice.task.name, choice.task.name)
        choice = Choice(architecture.task(name), choice.variant)
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
    raise ConfigError(
        f"{architecture.title} has no task {text!r}.",
        fix=(
            f"{_suggestion(architecture, text)} "
            f"`musubi models show {architecture.name}` lists them all."
        ),
    )


def _task_names(architecture: Architecture) -> list[str]:
    return [v.name for v in architecture.variants] + [t.name for t in architecture.tasks]


def _suggestion(architecture: Architecture, text: str) -> str:
    """What to write instead of a task that the architecture does not have.

    Only names with the same task word are near: i2v-14B is not t2v-14B, though one letter differs.
    """
    from musubi.config.commands import architectures  # here: that module imports this one

    others = [a for a in architectures() if a.name != architecture.name]
    names = _task_names(architecture)
    word = text.lower().partition("-")[0]
    same = [name for name in names if word in name.lower().split("-")]
    elsewhere = any(word in name.lower().split("-") for a in others for name in _task_names(a))
    owners = [a.name for a in others if text in _task_names(a)]
    said = did_you_mean(text, same or names)
    if elsewhere and not same:
        said = f"Known: {', '.join(names)}."
    return said + "".join(f" `--arch {name}` has {text!r}." for name in owners)


def _recognised(
    architecture: Architecture,
    numbers: Mapping[str, Any] | None,
    path: Path | None,
    given: Iterable[str] | None,
    named: Iterable[str],
) -> Choice:
    fitting = [t for t in architecture.tasks if numbers is None or _fits(t, numbers)]
    if not fitting:
        shown = ", ".join(f"{k} {v}" for k, v in (numbers or {}).items())
        raise CheckpointError(
            f"{path or 'The checkpoint'} ({shown}) is made for no task of {architecture.title}.",
            fix=f"`musubi models show {architecture.name}` lists the files that are known.",
        )
    if given is not None:
        names = set(given)
        options = {architecture.component(name).option for name in names}
        fitting = [t for t in fitting if options <= _file_options(architecture, t)] or fitting
        if numbers is not None:
            fitting = [t for t in fitting if names.issuperset(t.denoisers)] or fitting
    asked = set(named) & {key for t in architecture.tasks for key in _dataset_keys(t)}
    fitting = [t for t in fitting if asked <= _dataset_keys(t)] or fitting
    # Some tasks are meant by an option alone.
    switched = {name for option in architecture.options for name in option.task.values()}
    fitting = [t for t in fitting if t.name not in switched] or fitting
    if numbers is not None:
        _refuse_ambiguity(fitting, path)
        for variant in architecture.variants:
            if variant.task == fitting[0].name and _has(numbers, variant.numbers):
                return Choice(fitting[0], variant)
    return Choice(fitting[0])


def _refuse_ambiguity(fitting: Sequence[Task], path: Path | None) -> None:
    """Refuse a checkpoint that fits tasks which are given different things.

    Tasks that differ in nothing but their defaults are alike here: the first is meant.
    """

    def given(task: Task) -> tuple[object, ...]:
        return (task.schema, task.components, task.denoisers, task.inputs, task.geometry)

    different = [t for t in fitting if given(t) != given(fitting[0])]
    if different:
        names = [fitting[0].name, *(t.name for t in different)]
        raise ConfigError(
            f"{path or 'This checkpoint'} fits the tasks {', '.join(names[:-1])} and {names[-1]}.",
            fix=f"Say which is meant: --task {' or --task '.join(names)}.",
        )


def _file_options(architecture: Architecture, task: Task) -> set[str]:
    """The options that give the files of a task's networks."""
    return {architecture.component(n).option for n in (*task.components, *task.denoisers)}


def _dataset_keys(task: Task) -> set[str]:
    """The keys of datasets that name inputs of a task."""
    return {key for one in task.inputs for key in (one.directory, one.column) if key is not None}


def _fits(task: Task, numbers: Mapping[str, Any]) -> bool:
    return _has(numbers, task.requires)


def _has(numbers: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(numbers.get(key) == value for key, value in wanted.items())
