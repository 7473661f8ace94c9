"""Checks that latents are for this autoencoder. Those of another one may have the same shape, and
decode to noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from musubi import registry
from musubi.errors import ConfigError
from musubi.generate.write import LatentFile
from musubi.plugin import Architecture, Component, Report, Task


def check_latents(
    found: LatentFile, path: Path, architecture: Architecture, task: Task, report: Report
) -> None:
    """Refuse latents that the task's autoencoder cannot decode.

    The file's metadata decides. Files of older tools have less metadata, and get a warning.

    Raises:
        ConfigError: The latents have another size, or are of another autoencoder.
    """
    channels = found.latents.shape[1]
    if channels != task.shape.channels:
        raise ConfigError(
            f"{path} holds latents of {channels} channels, and {architecture.title} has "
            f"{task.shape.channels}.",
            fix="Give latents that were made with this architecture.",
        )
    name = found.recipe.get("architecture")
    if isinstance(name, str):
        _refuse_stranger(name, found.recipe.get("task"), path, architecture, task)
    elif "infer_steps" in found.metadata:
        _warn_of_stranger(found, path, architecture, task, report)


def _refuse_stranger(
    name: str, made_by: object, path: Path, architecture: Architecture, task: Task
) -> None:
    other = architecture if name == architecture.name else _installed(name)
    if other is None:
        raise ConfigError(
            f"{path} holds latents of {name!r}, and this is {architecture.title}.",
            fix="Decode them with the architecture that made them.",
        )
    theirs = _task(other, made_by)
    if theirs is None or _same_vae(other, theirs, architecture, task):
        return
    raise ConfigError(
        f"{path} holds latents of {other.title}'s task {theirs.name!r}, which the VAE of "
        f"{architecture.title}'s task {task.name!r} cannot decode.",
        fix=f"Give --arch {other.name} --task {made_by}, and that model's --vae.",
    )


def _warn_of_stranger(
    found: LatentFile, path: Path, architecture: Architecture, task: Task, report: Report
) -> None:
    """Older tools write some options by their name: these differ from one architecture to another."""
    said = {name for one in _every(architecture) for name in _written(one)} & set(found.metadata)
    likely = [one for one in _every(architecture) if _written(one) == said]
    if not likely or architecture in likely:
        return
    if any(_same_vae(one, each, architecture, task) for one in likely for each in one.tasks):
        return
    report.warn(
        f"{path} seems to hold latents of {likely[0].title}, and this is {architecture.title}: if the "
        f"frames are noise, decode with --arch {likely[0].name}."
    )


def _written(architecture: Architecture) -> set[str]:
    return {option.name for option in architecture.options if option.written}


def _every(architecture: Architecture) -> Iterator[Architecture]:
    yield architecture
    for name in registry.names():
        other = _installed(name)
        if other is not None and name != architecture.name:
            yield other


def _installed(name: str) -> Architecture | None:
    try:
        return registry.find(name)
    except ConfigError:
        return None


def _task(architecture: Architecture, named: object) -> Task | None:
    for variant in architecture.variants:
        if variant.name == named:
            return architecture.task(variant.task)
    return next((task for task in architecture.tasks if task.name == named), None)


def _same_vae(a: Architecture, task_a: Task, b: Architecture, task_b: Task) -> bool:
    return _vaes(a, task_a) == _vaes(b, task_b)


def _vaes(architecture: Architecture, task: Task) -> list[object]:
    return [_network(component) for component in architecture.of_role("vae", task)]


def _network(component: Component) -> object:
    return component.build, component.infer
