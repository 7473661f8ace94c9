"""What depends on options and sizes: defaults, and what is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from musubi.architectures.wan.guidance import check
from musubi.errors import ConfigError, counted
from musubi.plugin import Recipe, Sampling

LOW_RESOLUTION = ((832, 480), (480, 832))


def image_defaults(sampling: Sampling, width: int, height: int) -> Sampling:
    """Image to video at 480p has a smaller flow shift."""
    if (width, height) in LOW_RESOLUTION:
        return replace(sampling, flow_shift=3.0)
    return sampling


@dataclass(frozen=True)
class OneFrame:
    """What `--one_frame_inference` says.

    Args:
        target: The place in time of the frame that is made.
        controls: The places of the pictures that are given, in their order; None: not said.
    """

    target: int = 1
    controls: tuple[int, ...] | None = None


def one_frame(text: str) -> OneFrame:
    """Read `target_index=1,control_index=0;10`.

    >>> one_frame("target_index=20,control_index=0;10")
    OneFrame(target=20, controls=(0, 10))

    Raises:
        ConfigError: It says something else.
    """
    fix = "Write --one_frame_inference target_index=1,control_index=0, say."
    found = OneFrame()
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        try:
            numbers = tuple(int(n) for n in value.split(";"))
        except ValueError:
            numbers = ()
        if name == "target_index" and len(numbers) == 1:
            found = replace(found, target=numbers[0])
        elif name == "control_index" and numbers:
            found = replace(found, controls=numbers)
        elif part == "default":
            continue
        elif name in ("no_2x", "no_4x", "no_post") and not equals:
            raise ConfigError(f"--one_frame_inference {name} is FramePack's.", fix="Leave it out.")
        else:
            raise ConfigError(f"--one_frame_inference does not know {part!r}.", fix=fix)
    return found


def single_frame(available: int, options: Mapping[str, Any]) -> int:
    """How many frames of a clip a one-frame task uses."""
    return min(available, 1)


def both_ends(available: int, options: Mapping[str, Any]) -> int:
    """How many frames of a clip a task between two frames uses: 4 k + 1, and more than one."""
    frames = (available - 1) // 4 * 4 + 1
    return frames if frames > 1 else 0


def check_one_frame(recipe: Recipe) -> None:
    """Refuse a one-frame recipe whose pictures and places in time do not belong together.

    Raises:
        ConfigError: They do not.
    """
    check(recipe)
    asked = one_frame(recipe.options.get("one_frame_inference") or "")
    named = recipe.options.get("control_image_path") or []
    count = 1 if isinstance(named, str) else len(named)
    controls = asked.controls if asked.controls is not None else (0,)
    if len(controls) != count:
        raise ConfigError(
            f"--one_frame_inference has {len(controls)} control_index and there are {count} control "
            "images.",
            fix="Give as many numbers in control_index as --control_image_path names images, such as "
            "control_index=0;10 for two.",
        )
    masks = recipe.options.get("control_image_mask_path") or []
    if len(masks) > count:
        raise ConfigError(
            f"--control_image_mask_path names {counted(len(masks), 'mask')} for "
            f"{counted(count, 'control image')}.",
            fix="Give one mask for each control image, in the same order.",
        )
    if recipe.frames != 1:
        raise ConfigError(
            f"--one_frame_inference makes one frame, not {recipe.frames}.",
            fix="Leave --video_length out.",
        )


def check_control(recipe: Recipe) -> None:
    """Refuse Fun-Control from an image without an image, and several references.

    Raises:
        ConfigError: Neither a start image nor a reference is given, or there are several.
    """
    check(recipe)
    references = recipe.options.get("reference_image_path") or []
    if not isinstance(references, str) and len(references) > 1:
        raise ConfigError(
            f"--reference_image_path names {counted(len(references), 'image')}, and Fun-Control takes one.",
            fix="Give one reference image.",
        )
    if not (recipe.options.get("image_path") or recipe.options.get("reference_image_path")):
        raise ConfigError(
            "The task i2v-FC needs an image, and none was given.",
            fix="Give --image_path PATH, or --reference_image_path with a V1.1 model; or --task "
            "t2v-FC, which needs neither an image nor --clip.",
        )
