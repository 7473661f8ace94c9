"""What options mean together, and the hooks that read them. No torch in this file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musubi.architectures.framepack import layout
from musubi.architectures.framepack.by_section import by_section, chosen
from musubi.architectures.framepack.single import OneFrame, one_frame_from
from musubi.errors import ConfigError, counted
from musubi.plugin import Recipe

SECONDS = 5.0


def window_of(options: Mapping[str, Any]) -> int:
    """Latent frames of a section: what the dataset says, else the command line, else 9.

    Raises:
        ConfigError: It is below 1.
    """
    for name in ("fp_latent_window_size", "latent_window_size"):
        given = options.get(name)
        if given is not None:
            if given < 1:
                raise ConfigError(f"{name} is {given}.", fix="Give 9, which was trained.")
            return int(given)
    return layout.WINDOW


def usable_frames(available: int, options: Mapping[str, Any]) -> int:
    """How many frames of a video are used: whole sections and the frame before them."""
    window = window_of(options)
    sections = layout.sections_in(available, window)
    return layout.frames_of(sections, window) if sections else 0


def only_one(available: int, options: Mapping[str, Any]) -> int:
    """How many frames a single frame is made of."""
    return min(available, 1)


def frames(options: Mapping[str, Any]) -> int:
    """Frames of the video that a recipe with these options makes.

    Raises:
        ConfigError: A length that is not above 0.
    """
    window, count = window_of(options), options.get("video_sections")
    if count is None:
        seconds, length = options.get("video_seconds"), options.get("frames")
        if seconds is None and length is not None:
            seconds = (length - 1) / layout.FRAME_RATE  # as previews count them
            return layout.frames_of(layout.sections_of(max(seconds, 0.0), window), window)
        seconds = SECONDS if seconds is None else float(seconds)
        if not 0 < seconds < float("inf"):
            raise ConfigError(f"--video_seconds {seconds:g} makes no video.", fix="Give 5, say.")
        count = layout.sections_of(seconds, window)
    if count < 1:
        raise ConfigError(f"--video_sections {count} makes no video.", fix="Give 1 or more.")
    return layout.frames_of(count, window)


def one(options: Mapping[str, Any]) -> int:
    """Frames of a single frame."""
    return 1


def sections_of(recipe: Recipe) -> int:
    """How many sections a recipe makes."""
    return max(layout.sections_in(recipe.frames, window_of(recipe.options)), 1)


def paddings_of(recipe: Recipe) -> tuple[int, ...]:
    """How many sections lie between each section and the start image, in the order of making."""
    given = recipe.options.get("latent_paddings")
    own = layout.paddings_from(given) if given else ()
    return layout.paddings(sections_of(recipe), own)


def pictures(text: str) -> list[str]:
    """The files of `--image_path`, in the order of `by_section`."""
    return list(by_section(text).values())


def text_name(key: int) -> str:
    """What the text of a section is called; the first one's is the prompt."""
    return "prompt" if key == 0 else f"section {key}"


def texts(recipe: Recipe) -> dict[str, str]:
    """Every text that is encoded: of each section that has one of its own, and the negative one."""
    found = {text_name(key): text for key, text in by_section(recipe.prompt).items()}
    if recipe.guidance_scale != 1:
        found["negative"] = recipe.negative_prompt
    return found


def check(recipe: Recipe) -> None:
    """Refuse what no video can be made by, before anything is loaded.

    Raises:
        ConfigError: Sections, paddings or pictures that cannot be.
    """
    count = sections_of(recipe)
    paddings_of(recipe)
    _check_rope(recipe)
    if recipe.options.get("one_frame_inference") is not None:
        raise ConfigError(
            "A video and a single frame cannot be made by one command.",
            fix="Give --one_frame_inference default on the command line, and --of in the lines.",
        )
    if recipe.options.get("f1"):
        for name in ("end_image_path", "latent_paddings"):
            if recipe.options.get(name):
                raise ConfigError(
                    f"--{name} means nothing with --f1, which makes sections in the order of time.",
                    fix=f"Leave out --{name} or --f1.",
                )
    for name, text in (("prompt", recipe.prompt), ("image_path", recipe.options.get("image_path"))):
        for key in by_section(text) if text else ():
            if not -count <= key < count:
                raise ConfigError(
                    f"--{name} speaks of section {key}, and the video has {count}.",
                    fix=f"Sections are 0 to {count - 1}, or -1 to -{count} from the end.",
                )


def check_single(recipe: Recipe) -> None:
    """Refuse what no single frame can be made by, before anything is loaded.

    Raises:
        ConfigError: Words, indices or images that do not fit together.
    """
    _check_rope(recipe)
    controls = recipe.options.get("control_image_path") or ()
    masks = recipe.options.get("control_image_mask_path") or ()
    single_of(recipe.options).indices(len(controls))
    if len(masks) > len(controls):
        raise ConfigError(
            f"--control_image_mask_path has {counted(len(masks), 'mask')} for "
            f"{counted(len(controls), 'control image')}.",
            fix="Give at most one mask for each control image.",
        )


def single_of(options: Mapping[str, Any]) -> OneFrame:
    """How a single frame is made, by the options of a recipe."""
    return one_frame_from(options.get("one_frame_inference") or "")


def chosen_keys(values: Mapping[int, str], sections: int) -> list[int]:
    """For each section, in the order of time, which of `values` is meant."""
    return [chosen(values, i, sections) for i in range(sections)]


def _check_rope(recipe: Recipe) -> None:
    factor = recipe.options.get("rope_scaling_factor")
    if factor is not None and factor <= 0:
        raise ConfigError(f"--rope_scaling_factor is {factor:g}.", fix="Give 0.5, say.")
