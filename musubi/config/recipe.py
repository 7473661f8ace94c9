"""Build a complete recipe from the given options; this is the only place that fills in defaults."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from musubi.config.generate import GenerateConfig
from musubi.config.options import for_architecture, own_options
from musubi.config.plan import PlanConfig
from musubi.config.prompts import PREVIEW
from musubi.config.task import Choice
from musubi.errors import ConfigError, did_you_mean
from musubi.plugin import Architecture, Input, Recipe, Report, Task
from musubi.untrusted import text_fault

ENGINE_OPTIONS = (
    "cfg_skip_mode",
    "cfg_apply_ratio",
    "magcache_mag_ratios",
    "magcache_retention_ratio",
    "magcache_threshold",
    "magcache_k",
    "magcache_calibration",
)
MOST_SEED = 2**63 - 1
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

PROMPT, NEGATIVE = "prompt", "negative"
"""The names of a recipe's two texts, where its task names no others."""

Given = tuple[dict[str, Any], dict[str, Any]]
SizeOf = Callable[[str], tuple[int, int]]
"""`(path) -> (width, height)` of an image."""


def build_recipe(
    architecture: Architecture,
    choice: Choice,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    report: Report,
    *,
    size_of: SizeOf | None = None,
    complete: bool = True,
) -> Recipe:
    """Fill in what `given` leaves open (missing or None) from the task's defaults, and check it.

    Args:
        architecture: Whose options count.
        choice: The task and variant.
        given: As `config.prompts.parse_line` makes it, and `fps`, `solver`, `cpu_noise`.
        options: The architecture's own options and the engine's `cfg_skip_mode` and
            `cfg_apply_ratio`; keys of `given` that are among them are laid over.
        report: Gets a message if the number of frames is rounded.
        size_of: Measures a picture whose proportions the video takes; None: such pictures are not
            looked at.
        complete: Whether the inputs that the task needs must be there; a plan does without.

    Raises:
        ConfigError: A size, a length or an option that this task does not take.
        DataError: A picture cannot be read.
    """
    task, shape = choice.task, choice.task.shape
    asked = {key: value for key, value in given.items() if value is not None}
    said = _own(architecture, asked)
    _check_values(architecture, said)
    own = _over(choice.sampling.options, options, said)
    width = asked.get("width", choice.sampling.size[0])
    height = asked.get("height", choice.sampling.size[1])
    defaults = choice.sampling_at(width, height)
    _check_task(architecture, choice, asked)
    own = _of_task(architecture, choice, own)
    picture = _leading_picture(choice, own)
    if picture is not None and size_of is not None:
        width, height = shape.same_area((width, height), size_of(picture))
    check_size(architecture, choice, width, height)
    solver = asked.get("solver", defaults.solver)
    if solver not in defaults.solvers:
        report.warn(f"The solver {solver} was not tried with the task {task.name!r}.")
    if task.frames is not None:
        frames = int(task.frames({"frames": asked.get("frames"), **own}))
    else:
        asked_frames = asked.get("frames", defaults.frames)
        frames = fitting_frames(architecture, choice, asked_frames, report)
    recipe = Recipe(
        prompt=asked.get("prompt", ""),
        negative_prompt=asked.get("negative_prompt") or defaults.negative_prompt,
        width=width,
        height=height,
        frames=frames,
        fps=asked.get("fps", shape.frame_rate),
        seed=_seed(asked.get("seed", -1)),
        steps=_positive("steps", asked.get("steps", defaults.steps)),
        solver=solver,
        flow_shift=_shift(asked.get("flow_shift", defaults.flow_shift)),
        guidance_scale=_finite(
            "guidance_scale", asked.get("guidance_scale", defaults.guidance_scale)
        ),
        cpu_noise=asked.get("cpu_noise", False),
        options=_over(defaults.options, own),
    )
    _check_limits(recipe)
    if complete:
        _check_inputs(choice, recipe)
        if task.check is not None:
            task.check(recipe)
    return recipe


def requested(config: GenerateConfig | PlanConfig, architecture: Architecture) -> Given:
    """What the options of a command ask for, and its options: two arguments of `build_recipe`."""
    size = config.width_height or (None, None)
    frames = config.video_length
    if isinstance(config, PlanConfig):
        size = (config.width or size[0], config.height or size[1])
        frames = config.frames or frames
    given = {
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt,
        "width": size[0],
        "height": size[1],
        "frames": frames,
        "fps": config.fps,
        "seed": config.seed,
        "steps": config.infer_steps,
        "solver": config.sample_solver,
        "flow_shift": config.flow_shift,
        "guidance_scale": config.guidance_scale,
        "cpu_noise": config.cpu_noise,
    }
    own = own_options(config, architecture)
    own |= {name: getattr(config, name, None) for name in ENGINE_OPTIONS}
    return given, own


def texts_of(recipe: Recipe, task: Task) -> dict[str, str]:
    """The texts that are encoded for a recipe, by name: the task's own, else the prompt and, where
    some step reads it, the negative prompt. With a guidance scale of 1 none does.
    """
    if task.texts is not None:
        return dict(task.texts(recipe))
    negative = {NEGATIVE: recipe.negative_prompt} if recipe.guidance_scale != 1 else {}
    return {PROMPT: recipe.prompt, **negative}


def preview_recipe(
    architecture: Architecture,
    choice: Choice,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    report: Report,
    *,
    size_of: SizeOf | None = None,
    complete: bool = True,
) -> Recipe:
    """The recipe of a training preview: `PREVIEW` where the prompt says nothing, sizes rounded down.

    The flow shift, the guidance scale and the negative prompt default to the task's own.
    """
    asked = {**PREVIEW, **{key: value for key, value in given.items() if value is not None}}
    step = choice.task.shape.side
    for side in ("width", "height"):
        asked[side] = max(asked[side] // step, 1) * step
    return build_recipe(
        architecture, choice, asked, options, report, size_of=size_of, complete=complete
    )


_LONGEST = 1 << 20  # characters of a prompt


def check_size(architecture: Architecture, choice: Choice, width: int, height: int) -> None:
    """Refuse sides that the network cannot take, with the nearest ones it can.

    Raises:
        ConfigError: A side is not a positive multiple of what the task's geometry demands.
    """
    shape = choice.task.shape
    fits = [shape.fitting_side(side) for side in (width, height)]
    if fits != [width, height]:
        raise ConfigError(
            f"{architecture.title} makes no {width}x{height} (width x height): sides are multiples of {shape.side}.",
            fix=f"Give --size {fits[0]}x{fits[1]}.",
        )


def fitting_frames(architecture: Architecture, choice: Choice, frames: int, report: Report) -> int:
    """The longest possible length that is not above `frames`; says so when it differs.

    Raises:
        ConfigError: `frames` is not positive.
    """
    shape = choice.task.shape
    fitting = shape.fitting_frames(_positive("frames", frames))
    if fitting != frames:
        report.note(
            f"{frames} frames are rounded down to {fitting}: "
            f"{architecture.title} makes {shape.period} k + 1 of them."
        )
    return fitting


def paths_of(wanted: Input, value: Any) -> list[str]:
    """The paths that the value of an input's flag names."""
    if not value:
        return []
    if wanted.paths is not None:
        return list(wanted.paths(value))
    return [value] if isinstance(value, str) else list(value)


def _leading_picture(choice: Choice, options: Mapping[str, Any]) -> str | None:
    """The picture whose proportions the video takes: the first that was given."""
    for one in choice.task.inputs:
        leads = one.fit == "area" or (one.leads is not None and bool(options.get(one.leads)))
        if leads and one.flag is not None:
            given = paths_of(one, options.get(one.flag))
            if given:
                return given[0]
    return None


def _check_inputs(choice: Choice, recipe: Recipe) -> None:
    for one in choice.task.inputs:
        if one.required and one.flag and not paths_of(one, recipe.options.get(one.flag)):
            letter = f", or --{one.letter} in a prompt line" if one.letter else ""
            kind = {"image": "an image", "video": "a video", "mask": "a mask"}[one.kind]
            raise ConfigError(
                f"The task {choice.task.name!r} needs {kind} ({one.name}), and none was given.",
                fix=f"Give --{one.flag} PATH{letter}.",
            )


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
        if value is not None and not low <= value <= high:  # nor is NaN
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
    known |= {one.flag for one in architecture.inputs if one.flag is not None}
    own = {key: value for key, value in asked.items() if key not in _NUMBERS}
    for key in own:
        if key not in known:
            raise ConfigError(
                f"{architecture.title} takes no {key} in a prompt.", fix=did_you_mean(key, known)
            )
    return own


def _check_values(architecture: Architecture, said: Mapping[str, Any]) -> None:
    """Hold what a prompt sets to the bounds and the choices of the flag of that name."""
    model = for_architecture(GenerateConfig, architecture, "generate")
    for name, value in said.items():
        field = model.model_fields.get(name)
        if field is None:
            continue
        kind: Any = field.annotation
        for limit in field.metadata:
            kind = Annotated[kind, limit]
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            told = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise ConfigError(
                f"A prompt cannot have {name} {value!r:.60}.", fix=f"It must be {told}."
            ) from error


def _of_task(
    architecture: Architecture, choice: Choice, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options without the inputs of other tasks, which must not be given."""
    others = {one.flag for one in architecture.inputs} - {one.flag for one in choice.task.inputs}
    for name in others:
        if name is not None and options.get(name):
            raise ConfigError(
                f"--{name} means nothing for the task {choice.task.name!r}.", fix="Leave it out."
            )
    return {name: value for name, value in options.items() if name not in others}


def _check_task(architecture: Architecture, choice: Choice, asked: Mapping[str, Any]) -> None:
    """Refuse a prompt that means another task than the command's: its networks are another's."""
    for option in architecture.options:
        meant = set(option.task.values())
        if meant and asked.get(option.name) and choice.task.name not in meant:
            alike = [f"--{o.name}" for o in architecture.options if meant & set(o.task.values())]
            raise ConfigError(
                f"A prompt with --{option.letter or option.name} is for the task "
                f"{' or '.join(sorted(meant))}, and this command is for {choice.task.name}.",
                fix=f"Give {' or '.join(alike)} to the command itself, whichever of them it has.",
            )


def _seed(value: int) -> int:
    if value == -1:
        return secrets.randbelow(2**32)
    if not 0 <= value <= MOST_SEED:
        raise ConfigError(
            f"The seed {value} is not possible.", fix="Give a number from 0 to 2^63 - 1, or -1."
        )
    return value


def _shift(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ConfigError(
            f"A flow shift of {value:g} is not possible.", fix="Give --flow_shift above 0."
        )
    return value


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"A {name} of {value} is not possible.", fix=f"Give --{name} 5, say.")
    return value


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"{name} {value} makes nothing.", fix="Give 1 or more.")
    return value
