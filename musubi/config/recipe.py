"""From what was asked to a recipe in which every number is decided."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from musubi.config.prompts import PREVIEW
from musubi.config.task import Choice
from musubi.errors import ConfigError
from musubi.plugin import Architecture, Recipe, Report
from musubi.untrusted import text_fault

ENGINE_OPTIONS = ("cfg_skip_mode", "cfg_apply_ratio")
_NUMBERS = (
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "frames",
    "fps",
    "seed",
    "steps",
    "solver",
    "flow_shift",
    "guidance_scale",
    "cpu_noise",
)


def build_recipe(
    architecture: Architecture,
    choice: Choice,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    report: Report,
) -> Recipe:
    """Fill in what `given` leaves open (missing or None) from the task's defaults, and check it.

    Args:
        architecture: Whose sizes and options count.
        choice: The task and variant.
        given: As `config.prompts.parse_line` makes it, and `fps`, `solver`, `cpu_noise`.
        options: The architecture's own options and the engine's `cfg_skip_mode` and
            `cfg_apply_ratio`; keys of `given` that are among them are laid over.
        report: Told when the frames are rounded.

    Raises:
        ConfigError: A size, a length or an option that this architecture does not take.
    """
    asked = {key: value for key, value in given.items() if value is not None}
    width = asked.get("width", choice.sampling.size[0])
    height = asked.get("height", choice.sampling.size[1])
    check_size(architecture, width, height)
    defaults = choice.sampling_at(width, height)
    solver = asked.get("solver", defaults.solver)
    if solver not in defaults.solvers:
        report.warn(f"The solver {solver} was not tried with the task {choice.task.name!r}.")
    recipe = Recipe(
        prompt=asked.get("prompt", ""),
        negative_prompt=asked.get("negative_prompt") or defaults.negative_prompt,
        width=width,
        height=height,
        frames=fitting_frames(architecture, asked.get("frames", defaults.frames), report),
        fps=asked.get("fps", architecture.frame_rate),
        seed=asked["seed"] if "seed" in asked else secrets.randbelow(2**32),
        steps=_positive("steps", asked.get("steps", defaults.steps)),
        solver=solver,
        flow_shift=asked.get("flow_shift", defaults.flow_shift),
        guidance_scale=asked.get("guidance_scale", defaults.guidance_scale),
        cpu_noise=asked.get("cpu_noise", False),
        options=_over(defaults.options, options, _own(architecture, asked)),
    )
    _check_limits(recipe)
    return recipe


def preview_recipe(
    architecture: Architecture,
    choice: Choice,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    report: Report,
) -> Recipe:
    """The recipe of a training preview: `PREVIEW` where the prompt says nothing, sizes rounded down.

    The flow shift, the guidance scale and the negative prompt default to the task's own.
    """
    asked = {**PREVIEW, **{key: value for key, value in given.items() if value is not None}}
    step = architecture.spatial_multiple
    for side in ("width", "height"):
        asked[side] = max(asked[side] // step, 1) * step
    return build_recipe(architecture, choice, asked, options, report)


_LONGEST = 1 << 20  # characters of a prompt


def check_size(architecture: Architecture, width: int, height: int) -> None:
    """Refuse sides that the network cannot take, with the nearest ones it can.

    Raises:
        ConfigError: A side is not a positive multiple of the architecture's `spatial_multiple`.
    """
    step = architecture.spatial_multiple
    fits = [max(round(side / step), 1) * step for side in (width, height)]
    if fits != [width, height]:
        raise ConfigError(
            f"{architecture.title} makes no {width}x{height} (width x height): sides are multiples of {step}.",
            fix=f"Give --size {fits[0]}x{fits[1]}.",
        )


def fitting_frames(architecture: Architecture, frames: int, report: Report) -> int:
    """The largest `temporal_multiple * k + 1` that is not above `frames`; says so when it differs.

    Raises:
        ConfigError: `frames` is not positive.
    """
    step = architecture.temporal_multiple
    fitting = (_positive("frames", frames) - 1) // step * step + 1
    if fitting != frames:
        report.note(
            f"{frames} frames are rounded down to {fitting}: "
            f"{architecture.title} makes {step} k + 1 of them."
        )
    return fitting


_LIMITS: Mapping[str, tuple[float, float]] = {
    "width": (1, 65_536),
    "height": (1, 65_536),
    "frames": (1, 100_000),
    "fps": (0.001, 1000),
    "seed": (0, 2**63 - 1),
    "steps": (1, 10_000),
    "flow_shift": (1e-6, 1e6),
    "guidance_scale": (-1e6, 1e6),
}


def _check_limits(recipe: Recipe) -> None:
    """Refuse what a prompt file asks for and no network or no memory can give."""
    for name, (low, high) in _LIMITS.items():
        value = getattr(recipe, name)
        if not low <= value <= high:  # nor is NaN
            raise ConfigError(
                f"A prompt cannot have {name} {value!r:.60}.", fix=f"Give {low:g} to {high:g}."
            )
    for name in ("prompt", "negative_prompt"):
        text = getattr(recipe, name)
        fault = text_fault(text) or ("it is too long" if len(text) > _LONGEST else None)
        if fault is not None:
            raise ConfigError(f"The {name} {text[:60]!r} cannot be used: {fault}.")


def _over(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers over earlier ones; None never hides a value."""
    out: dict[str, Any] = {}
    for layer in layers:
        out |= {k: v for k, v in layer.items() if v is not None or k not in out}
    return out


def _own(architecture: Architecture, asked: Mapping[str, Any]) -> dict[str, Any]:
    known = {option.name for option in architecture.options} | set(ENGINE_OPTIONS)
    own = {key: value for key, value in asked.items() if key not in _NUMBERS}
    own = {k: v for k, v in own.items() if k in known or k != "embedded_cfg_scale"}
    for key in own:
        if key not in known:
            raise ConfigError(
                f"{architecture.title} takes no {key} in a prompt.", fix="Leave it out of the line."
            )
    return own


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"{name} {value} makes nothing.", fix="Give 1 or more.")
    return value
