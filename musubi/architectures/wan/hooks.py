"""What depends on options and sizes: defaults, experts' noise levels, texts, refusals. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from musubi.errors import ConfigError
from musubi.plugin import Recipe, Sampling

BOUNDARY_T2V = 0.875
BOUNDARY_I2V = 0.9
LOW_RESOLUTION = ((832, 480), (480, 832))


def image_defaults(sampling: Sampling, width: int, height: int) -> Sampling:
    """Image to video at 480p has a smaller flow shift."""
    if (width, height) in LOW_RESOLUTION:
        return replace(sampling, flow_shift=3.0)
    return sampling


def boundary(options: Mapping[str, Any], default: float) -> float:
    """The noise level from which on the high-noise expert works, from 0 to 1.

    Raises:
        ConfigError: It is none.
    """
    given = options.get("timestep_boundary")
    if given is None:
        return default
    level = given / 1000 if given > 1 else given
    if not 0 < level < 1:
        raise ConfigError(
            f"--timestep_boundary {given:g} is no noise level between the two experts.",
            fix=f"Give a number between 0 and 1, such as {default:g}, or the timestep "
            f"{default * 1000:g}.",
        )
    return level


def experts_t2v(options: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The noise levels of Wan2.2's two text-to-video experts: low, high."""
    level = boundary(options, BOUNDARY_T2V)
    return ((0.0, level), (level, 1.0))


def experts_i2v(options: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The noise levels of Wan2.2's two image-to-video experts: low, high."""
    level = boundary(options, BOUNDARY_I2V)
    return ((0.0, level), (level, 1.0))


def texts(recipe: Recipe) -> dict[str, str]:
    """The prompt, and the negative prompt where some step reads it."""
    scales = (recipe.guidance_scale, recipe.options.get("guidance_scale_high_noise"))
    guided = any(scale is not None and scale != 1 for scale in scales)
    if guided or layer_skip(recipe) is not None:
        return {"prompt": recipe.prompt, "negative": recipe.negative_prompt}
    return {"prompt": recipe.prompt}


@dataclass(frozen=True, kw_only=True)
class LayerSkip:
    """Skip-layer guidance.

    Args:
        layers: Numbers of the blocks to leave out.
        mode: "original" adds scale (vc - vskip) to the guided velocity; "uncond" puts the call
            with blocks left out in the place of the unconditional one.
        scale: Of "original".
        start: Where it begins, as a part of the steps.
        end: Where it ends.
    """

    layers: tuple[int, ...]
    mode: str
    scale: float = 3.0
    start: float = 0.0
    end: float = 0.3

    def active(self, step: int, steps: int) -> bool:
        """Whether step number `step` of `steps` uses it."""
        return int(self.start * steps) <= step < int(self.end * steps)


def layer_skip(recipe: Recipe) -> LayerSkip | None:
    """What the recipe's options `slg_*` ask for.

    Raises:
        ConfigError: `slg_layers` is not a list of block numbers, or there is no `slg_mode`.
    """
    options = recipe.options
    layers, mode = options.get("slg_layers"), options.get("slg_mode")
    if layers is None and mode is None:
        return None
    if layers is None or mode is None:
        raise ConfigError(
            "--slg_layers and --slg_mode mean nothing without each other.", fix="Give both."
        )
    try:
        numbers = tuple(int(part) for part in str(layers).split(","))
    except ValueError as error:
        raise ConfigError(
            f"--slg_layers {layers!r} is not a list of block numbers.", fix="Write 9,10, say."
        ) from error
    return LayerSkip(
        layers=numbers,
        mode=mode,
        scale=options.get("slg_scale", 3.0),
        start=options.get("slg_start", 0.0),
        end=options.get("slg_end", 0.3),
    )


def check(recipe: Recipe) -> None:
    """Refuse options that do not belong together.

    Raises:
        ConfigError: They do not.
    """
    layer_skip(recipe)


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


def given_pictures(recipe: Recipe) -> list[str]:
    """The control images of a one-frame recipe: those named, else the start and the end image."""
    named = recipe.options.get("control_image_path")
    if named:
        return [named] if isinstance(named, str) else list(named)
    ends = (recipe.options.get("image_path"), recipe.options.get("end_image_path"))
    return [path for path in ends if path]


def check_one_frame(recipe: Recipe) -> None:
    """Refuse a one-frame recipe whose pictures and places in time do not belong together.

    Raises:
        ConfigError: They do not.
    """
    check(recipe)
    asked = one_frame(recipe.options.get("one_frame_inference") or "")
    count = len(given_pictures(recipe))
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
            f"--control_image_mask_path names {len(masks)} masks for {count} control images.",
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
            f"--reference_image_path names {len(references)} images, and Fun-Control takes one.",
            fix="Give one reference image.",
        )
    if not (recipe.options.get("image_path") or recipe.options.get("reference_image_path")):
        raise ConfigError(
            "The task i2v-FC needs an image, and none was given.",
            fix="Give --image_path PATH, or --reference_image_path with a V1.1 model; or --task "
            "t2v-FC, which needs neither an image nor --clip.",
        )


def check_vace(recipe: Recipe) -> None:
    """Refuse a mask without a video to change.

    Raises:
        ConfigError: There is one.
    """
    check(recipe)
    if recipe.options.get("mask_path") and not recipe.options.get("control_path"):
        raise ConfigError(
            "--mask_path says which part of a video is made anew, and no video was given.",
            fix="Give --control_path VIDEO as well.",
        )
