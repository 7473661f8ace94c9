"""The pictures a recipe starts from, as the clip that the cache's own verb encodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musubi.data.buckets import resize_and_crop
from musubi.data.media import VideoInfo, probe_video, read_frames, read_image
from musubi.errors import ConfigError, DataError
from musubi.flow.schedules import steps_taken
from musubi.plugin import Clip, Recipe, Task

# A task's input → the option of the architecture that carries its path.
OPTION = {
    "image": "image_path",
    "end_image": "end_image_path",
    "control": "control_image_path",
    "video": "video_path",
}


def has_media(options: Mapping[str, Any], task: Task) -> bool:
    """Whether something beside the text is encoded: the task needs it, or it may have it and does."""
    return bool(task.inputs) or any(options.get(OPTION[name]) for name in task.optional)


def check(recipe: Recipe, task: Task) -> None:
    """Look at the video that a recipe starts from, before anything large is loaded.

    Raises:
        ConfigError: Its strength is not possible.
        DataError: It cannot be read, or is too short.
    """
    path = _video_path(recipe, task)
    if path is not None:
        steps_taken(recipe.steps, recipe.options.get("strength", 1.0))
        _probed(path, recipe)


def clip_for(recipe: Recipe, task: Task) -> Clip:
    """The start image, the end image, the control images and the video that the task takes, at the
    recipe's size.

    Raises:
        ConfigError: The task needs a picture and the recipe names none.
        DataError: A picture cannot be read, or the video is too short.
    """
    frames: list[np.ndarray] = []
    for name in ("image", "end_image"):
        path = recipe.options.get(OPTION[name]) if name in task.inputs else None
        if path is not None:
            frames.append(_picture(path, recipe))
        elif name == "image" and name in task.inputs:
            raise ConfigError(
                f"The task {task.name!r} starts from an image, and none was given.",
                fix="Give --image_path, or --i in a prompt line.",
            )
    controls: list[np.ndarray] = []
    if "control" in task.inputs:
        given = recipe.options.get(OPTION["control"]) or ()
        paths = [given] if isinstance(given, str) else list(given)
        controls = [_picture(path, recipe)[None] for path in paths]
    video = _video_path(recipe, task)
    return Clip(
        name=recipe.prompt,
        frames=np.stack(frames)
        if frames
        else np.zeros((0, recipe.height, recipe.width, 3), np.uint8),
        length=recipe.frames,
        controls=tuple(controls),
        video=None if video is None else _video(video, recipe),
        target=False,
        options=recipe.options,
    )


def _picture(path: str, recipe: Recipe) -> np.ndarray:
    return _fitted(read_image(Path(path)), recipe)


def _fitted(picture: np.ndarray, recipe: Recipe) -> np.ndarray:
    return resize_and_crop(picture[None], (recipe.width, recipe.height))[0]


def _video_path(recipe: Recipe, task: Task) -> Path | None:
    given = recipe.options.get(OPTION["video"]) if "video" in task.optional else None
    return Path(given) if given else None


def _video(path: Path, recipe: Recipe) -> np.ndarray:
    """The first frames as they come, whatever their rate: uint8, F H W 3."""
    info = _probed(path, recipe)
    # Each is made its final size at once: a long video at its own size is gigabytes.
    return np.stack([_fitted(p, recipe) for _, p in read_frames(info, range(recipe.frames))])


def _probed(path: Path, recipe: Recipe) -> VideoInfo:
    info = probe_video(path, frames=recipe.frames)
    if info.frames < recipe.frames:
        raise DataError(
            f"{path} has {info.frames} frames, and {recipe.frames} are asked for.",
            fix=f"Give a longer video, or --video_length {info.frames} or less.",
        )
    return info
