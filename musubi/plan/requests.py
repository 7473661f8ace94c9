"""What `musubi generate` will be asked for: the sizes of its videos, and how many steps they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi.config.prompts import PREVIEW, parse_line, read_lines, read_prompt_file
from musubi.config.task import Choice
from musubi.errors import ConfigError
from musubi.plugin import Architecture


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video.

    Attributes:
        width: In pixels.
        height: In pixels.
        frames: As many as are made.
        steps: Denoising steps.
        calls: Calls of the network in a step: two with guidance.
    """

    width: int
    height: int
    frames: int
    steps: int
    calls: int

    @property
    def volume(self) -> int:
        """Pixels in all frames."""
        return self.width * self.height * self.frames


def requests(config: Any, architecture: Architecture, choice: Choice) -> tuple[Request, ...]:
    """One for each prompt of `--from_file`; else one, as the options say (`--interactive` too).

    Lines that cannot be read or made are left out, as `generate` leaves them out.

    Args:
        config: The options of `generate` or `plan`.
        architecture: Whose sizes count.
        choice: The task and variant, for what is not said.

    Raises:
        ConfigError: The file cannot be read, or the options ask for what cannot be made.
    """
    name = getattr(config, "from_file", None)
    if name is None:
        return (_request(config, architecture, choice, {}),)
    made = []
    for asked in _prompts(Path(name)):
        try:
            made.append(_request(config, architecture, choice, asked))
        except ConfigError:
            continue
    if not made:
        raise ConfigError(f"{name} holds no prompt that can be made.", fix="Mend its lines.")
    return tuple(made)


def previews(path: Path, architecture: Architecture, choice: Choice) -> tuple[Request, ...]:
    """One for each prompt of `--sample_prompts`, as training will draw it.

    Args:
        path: The file.
        architecture: Whose sizes count; sides are rounded down to what it takes.
        choice: The task and variant, for what is not said.

    Raises:
        ConfigError: The file cannot be read, or a prompt asks for what cannot be made.
    """
    step = architecture.spatial_multiple
    made = []
    for given in read_prompt_file(path, grammar="preview"):
        asked = {**PREVIEW, **given}
        sides = {side: max(asked[side] // step, 1) * step for side in ("width", "height")}
        made.append(_request(None, architecture, choice, {**asked, **sides}))
    return tuple(made)


def _prompts(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix.lower() in (".toml", ".json"):
        yield from read_prompt_file(path)
        return
    for _, line in read_lines(path):
        try:
            yield parse_line(line)
        except ConfigError:
            continue


def _request(
    config: Any, architecture: Architecture, choice: Choice, asked: Mapping[str, Any]
) -> Request:
    given = [getattr(config, name, None) for name in ("width", "height", "frames")]
    usual = getattr(config, "width_height", None) or choice.sampling.size
    width = asked.get("width") or given[0] or usual[0]
    height = asked.get("height") or given[1] or usual[1]
    defaults = choice.sampling_at(width, height)
    frames = asked.get("frames") or given[2] or getattr(config, "video_length", None)
    frames = frames or defaults.frames
    check_sides(architecture, width, height)
    scale = asked.get("guidance_scale", getattr(config, "guidance_scale", None))
    every = architecture.temporal_multiple
    return Request(
        width=width,
        height=height,
        frames=(frames - 1) // every * every + 1,
        steps=asked.get("steps") or getattr(config, "infer_steps", None) or defaults.steps,
        calls=1 if (defaults.guidance_scale if scale is None else scale) == 1 else 2,
    )


def check_sides(architecture: Architecture, width: int, height: int) -> None:
    """Refuse sides that the network cannot take.

    Raises:
        ConfigError: A side is no multiple of the architecture's `spatial_multiple`.
    """
    step = architecture.spatial_multiple
    if width % step or height % step:
        raise ConfigError(
            f"{width}x{height} pixels: {architecture.title} takes multiples of {step}.",
            fix=f"Write {_near(width, step)}x{_near(height, step)}, say.",
        )


def _near(side: int, step: int) -> int:
    return max(step, round(side / step) * step)
