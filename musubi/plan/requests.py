"""The videos that `musubi generate` or the previews of training will make, and their network calls per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from musubi.config.generate import GenerateConfig
from musubi.config.options import Options, own_options
from musubi.config.plan import PlanConfig
from musubi.config.prompts import grammar, parse_line, read_lines, read_prompt_file
from musubi.config.recipe import NEGATIVE, build_recipe, preview_recipe, requested, texts_of
from musubi.config.task import Choice
from musubi.errors import ConfigError
from musubi.plugin import Architecture, Quiet, Recipe, Task


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video.

    Attributes:
        width: In pixels.
        height: In pixels.
        frames: How many frames are made.
        steps: Denoising steps.
        calls: Calls of the network in a step: two with guidance.
    """

    width: int
    height: int
    frames: int
    steps: int
    calls: int

    @classmethod
    def of(cls, recipe: Recipe, task: Task) -> Request:
        """The request of a recipe."""
        return cls(
            width=recipe.width,
            height=recipe.height,
            frames=recipe.frames,
            steps=recipe.steps,
            calls=2 if NEGATIVE in texts_of(recipe, task) else 1,
        )

    @property
    def volume(self) -> int:
        """Pixels in all frames."""
        return self.width * self.height * self.frames


def requests(
    config: GenerateConfig | PlanConfig, architecture: Architecture, choice: Choice
) -> tuple[Request, ...]:
    """One for each prompt of `--from_file`; else one, as the options say (`--interactive` too).

    Lines that cannot be read or made are skipped, as `generate` does.

    Args:
        config: The options of `generate` or `plan`.
        architecture: Whose options count.
        choice: The task and variant, for what is not said.

    Raises:
        ConfigError: The file cannot be read, or the options ask for something that cannot be made.
    """
    given, own = requested(config, architecture)

    def made(asked: Mapping[str, Any]) -> Request:
        recipe = build_recipe(
            architecture, choice, {**given, **asked}, own, Quiet(), complete=False
        )
        return Request.of(recipe, choice.task)

    if config.from_file is None:
        return (made({}),)
    found = []
    for asked in _prompts(Path(config.from_file), architecture):
        try:
            found.append(made(asked()))
        except ConfigError:
            continue
    if not found:
        raise ConfigError(
            f"{config.from_file} holds no prompt that can be made.", fix="Mend its lines."
        )
    return tuple(found)


def previews(
    config: Options, path: Path, architecture: Architecture, choice: Choice
) -> tuple[Request, ...]:
    """One for each prompt of `--sample_prompts`, as training will make it.

    Args:
        config: The options of `train` or `plan`.
        path: The file.
        architecture: Whose options count.
        choice: The task and variant, for what is not said.

    Raises:
        ConfigError: The file cannot be read, or a prompt asks for what cannot be made.
    """
    own = own_options(config, architecture)
    return tuple(
        Request.of(
            preview_recipe(architecture, choice, asked, own, Quiet(), complete=False), choice.task
        )
        for asked in read_prompt_file(path, grammar(architecture, "preview"))
    )


def _prompts(path: Path, architecture: Architecture) -> list[Callable[[], Mapping[str, Any]]]:
    """One function for each prompt of a file; for a line that cannot be read, calling the function raises."""
    says = grammar(architecture)
    if path.suffix.lower() in (".toml", ".json"):
        return [partial(dict, asked) for asked in read_prompt_file(path, says)]
    return [partial(parse_line, line, says) for _, line in read_lines(path)]
