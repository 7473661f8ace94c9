"""The pictures a recipe starts from, as the clip that the cache's own verb encodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from musubi.data.buckets import resize_and_crop
from musubi.data.media import read_image
from musubi.errors import ConfigError
from musubi.spec import Clip, Recipe, Task

# A task's input → the option of the architecture that carries its path.
OPTION = {"image": "image_path", "end_image": "end_image_path", "control": "control_image_path"}


def clip_for(recipe: Recipe, task: Task) -> Clip:
    """The start image, the end image and the control images that the task takes, at the recipe's size.

    Raises:
        ConfigError: The task needs a picture and the recipe names none.
        DataError: A picture cannot be read.
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
    return Clip(
        name=recipe.prompt,
        frames=np.stack(frames)
        if frames
        else np.zeros((0, recipe.height, recipe.width, 3), np.uint8),
        length=recipe.frames,
        controls=tuple(controls),
        target=False,
        options=recipe.options,
    )


def _picture(path: str, recipe: Recipe) -> np.ndarray:
    return resize_and_crop(read_image(Path(path))[None], (recipe.width, recipe.height))[0]
