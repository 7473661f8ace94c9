"""What a dataset brings beside its clips: the task's inputs, and where the loss counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from musubi.config.dataset_values import found, is_archive, near
from musubi.errors import ConfigError
from musubi.plugin.architecture import Architecture, Task
from musubi.plugin.inputs import LOSS_MASK, Input


def inputs_of(
    given: Mapping[str, Any],
    target: tuple[Architecture, Task],
    place: tuple[str, str],
    *,
    home: Path,
    exists: bool,
    notes: list[str],
) -> tuple[tuple[Input, ...], dict[str, Path]]:
    """The inputs that a dataset can bring, and where those lie that have a directory.

    Args:
        given: Its keys and values.
        target: The architecture and the task.
        place: What to call the dataset, and the key that names its clips.
        home: The directory of the dataset file.
        exists: Whether its clips are there.
        notes: Collects messages about keys that are not used.

    Raises:
        ConfigError: A directory does not exist, or has no effect with the other keys.
    """
    (architecture, task), (where, key) = target, place
    listed = key.endswith("jsonl_file")
    mask = _loss_mask(given, task, where, image=key.startswith("image"))
    inputs = (*(one for one in task.inputs if one.in_datasets), mask)
    read = {one.directory for one in inputs}
    unread = {i.directory for i in architecture.inputs if i.directory} - read
    notes.extend(
        f"{where}: {name} is not read: the task {task.name!r} takes no such files."
        for name in sorted(unread & set(given))
    )
    directories: dict[str, Path] = {}
    for one in inputs:
        if one.directory is None or one.directory not in given:
            continue
        if listed:
            raise ConfigError(
                f"{where}: {one.directory} means nothing beside {key}.",
                fix=f"Write {one.column} into the lines of the list."
                if one.column
                else f"Give image_directory or video_directory instead of {key}.",
            )
        named = given[one.directory]
        directories[one.name], _ = found(named, home)
        place_of = directories[one.name]
        if exists and not place_of.is_dir() and not is_archive(place_of):
            raise ConfigError(
                f"{where}: the directory {named!r} of {one.directory} does not exist.",
                fix=near(directories[one.name], "Check the path.", home / named),
            )
    return inputs, directories


def _loss_mask(given: Mapping[str, Any], task: Task, where: str, *, image: bool) -> Input:
    """The input that says where the loss counts, by its longer names where the task takes the short ones."""
    own = {key for one in task.inputs for key in (one.directory, one.column)}
    taken = {LOSS_MASK.directory, LOSS_MASK.column} & own
    mask = LOSS_MASK
    if taken or f"loss_{LOSS_MASK.directory}" in given:
        mask = replace(
            mask, directory=f"loss_{LOSS_MASK.directory}", column=f"loss_{LOSS_MASK.column}"
        )
        if not taken and LOSS_MASK.directory in given:
            raise ConfigError(
                f"{where}: {LOSS_MASK.directory} and {mask.directory} are two names of one thing.",
                fix="Give one of them.",
            )
    if not given.get("alpha_mask"):
        return mask
    if not image:
        raise ConfigError(
            f"{where}: alpha_mask means nothing for videos, whose transparency is not read.",
            fix=f"Give {mask.directory} with a mask for each video, or leave it out.",
        )
    if mask.directory in given:
        raise ConfigError(
            f"{where}: alpha_mask and {mask.directory} both say where the loss counts.",
            fix="Give one of them.",
        )
    return replace(mask, column=None, directory=None)
