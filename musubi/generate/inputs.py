"""The input pictures and videos of a recipe, as a clip for `Runtime.encode_media`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musubi.config.recipe import paths_of
from musubi.data.clips import fitted, moves, picture
from musubi.data.images import brightness, image_size
from musubi.data.media import VideoInfo, probe_video, read_frames
from musubi.errors import ConfigError, DataError, counted
from musubi.plugin import Clip, Input, Prompt, Recipe, Task


def has_media(options: Mapping[str, Any], task: Task) -> bool:
    """Whether a recipe has pictures or videos to encode, in addition to the text."""
    return task.always_encodes or any(one.required or _files(one, options) for one in task.inputs)


def check(recipe: Recipe, task: Task) -> None:
    """Check the input files of a recipe, before anything large is loaded.

    Raises:
        ConfigError: A file does not exist, or the recipe cannot be generated.
        DataError: A video cannot be read, or is too short.
    """
    if task.check is not None:
        task.check(recipe)
    for one in task.inputs:
        for path in _files(one, recipe.options):
            if not path.exists():
                raise ConfigError(f"{path} of --{one.flag} does not exist.", fix="Check its path.")
            if moves(one, path):
                _probed(one, path, recipe)


def clip_for(recipe: Recipe, task: Task) -> Clip:
    """The clip with all inputs of the recipe, each resized as the task declares.

    Raises:
        DataError: A picture cannot be read, or a video is too short.
    """
    inputs: dict[str, tuple[np.ndarray, ...]] = {}
    for one in task.inputs:
        found = tuple(_read(one, path, recipe) for path in _files(one, recipe.options))
        if found:
            inputs[one.name] = found
    return Clip(
        name=recipe.prompt,
        frames=np.zeros((0, recipe.height, recipe.width, 3), np.uint8),
        length=recipe.frames,
        inputs=inputs,
        target=False,
        options=recipe.options,
    )


def size_of(path: str) -> tuple[int, int]:
    """Width and height of an image.

    Raises:
        DataError: It cannot be read.
    """
    return image_size(Path(path).expanduser())


def prompt_for(text: str, recipe: Recipe, task: Task) -> Prompt:
    """A text, with the pictures that the text encoders see.

    Raises:
        DataError: A picture cannot be read.
    """
    seen = {
        one.name: tuple(picture(one, path) for path in _files(one, recipe.options))
        for one in task.inputs
        if one.seen_by_text
    }
    return Prompt(text=text, pictures={name: found for name, found in seen.items() if found})


def seen_paths(recipe: Recipe, task: Task) -> tuple[str, ...]:
    """The files that the text encoders see; the cache of encoded prompts depends on them too."""
    return tuple(
        str(path) for one in task.inputs if one.seen_by_text for path in _files(one, recipe.options)
    )


def _files(wanted: Input, options: Mapping[str, Any]) -> list[Path]:
    if wanted.flag is None:
        return []
    return [Path(path).expanduser() for path in paths_of(wanted, options.get(wanted.flag))]


def _read(wanted: Input, path: Path, recipe: Recipe) -> np.ndarray:
    size = (recipe.width, recipe.height)
    if not moves(wanted, path):
        return fitted(wanted, picture(wanted, path), size)
    # The first frames, whatever their frame rate. Each is resized at once: a
    # long video at its own size is gigabytes.
    info = _probed(wanted, path, recipe)
    numbers = range(min(recipe.frames, info.frames))
    frames = [fitted(wanted, p[None], size)[0] for _, p in read_frames(info, numbers)]
    frames += [frames[-1]] * (recipe.frames - len(frames))
    found = np.stack(frames)
    return brightness(found) if wanted.kind == "mask" else found


def _probed(wanted: Input, path: Path, recipe: Recipe) -> VideoInfo:
    info = probe_video(path, frames=recipe.frames)
    if info.frames < recipe.frames and not wanted.hold:
        raise DataError(
            f"{path} has {counted(info.frames, 'frame')}, and the video is to have {recipe.frames}.",
            fix=f"Give a longer video, or --video_length {info.frames} or less.",
        )
    return info
