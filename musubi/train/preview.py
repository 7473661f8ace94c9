"""Previews: the generation code on the network in training, a set of prompts at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from musubi.config.prompts import grammar, read_prompt_file
from musubi.config.recipe import preview_recipe
from musubi.config.task import Choice
from musubi.errors import MusubiError
from musubi.generate.inputs import size_of
from musubi.generate.pipeline import Pipeline
from musubi.generate.write import metadata, write_images, write_video
from musubi.plugin import Architecture, Recipe, Report
from musubi.train.seeds import derive

Rescued = Callable[[Literal["sample", "decode"], Recipe], AbstractContextManager[None]]


@dataclass(frozen=True)
class PreviewPrompt:
    """One preview, and whether its prompt named a seed, which then stands in the file name."""

    recipe: Recipe
    seeded: bool


def read_prompts(
    path: str | Path,
    architecture: Architecture,
    choice: Choice,
    options: Mapping[str, Any],
    *,
    seed: int,
    report: Report,
) -> list[PreviewPrompt]:
    """The prompts of `--sample_prompts`; those without a seed get one that stays for the run.

    Raises:
        ConfigError: The file cannot be read, or a prompt asks for what cannot be made.
    """
    prompts: list[PreviewPrompt] = []
    for index, given in enumerate(_asked(path, architecture, report)):
        seeded = given.get("seed") is not None
        own = seed if seeded else derive(seed, "preview", index) % 2**32
        recipe = preview_recipe(
            architecture,
            choice,
            {"seed": own, **_present(given)},
            options,
            report,
            size_of=size_of,
        )
        prompts.append(PreviewPrompt(recipe, seeded))
    return prompts


class Gallery:
    """Draws the prompts, and writes them into `{output_dir}/sample`.

    Args:
        pipeline: The generation pipeline around the network in training.
        prompts: What to draw.
        folder: `{output_dir}/sample`.
        name: `--output_name`.
        facts: What else decides the pictures, for their metadata.
        report: Told of what failed.
        explained: Inside, running out of device memory becomes an error that says what to change.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        prompts: Sequence[PreviewPrompt],
        folder: Path,
        name: str,
        *,
        facts: Mapping[str, Any],
        report: Report,
        explained: Rescued = lambda where, recipe: nullcontext(),
    ) -> None:
        self.pipeline = pipeline
        self.prompts = prompts
        self.folder = folder
        self.name = name
        self.facts = facts
        self.report = report
        self.explained = explained

    def draw(self, *, step: int, epoch: int | None) -> None:
        """Draw every prompt. What fails is reported, and the next one is tried."""
        moment = f"e{epoch:06d}" if epoch is not None else f"{step:06d}"
        for index, prompt in enumerate(self.prompts):
            try:
                path = self._draw(index, prompt, moment)
            except Exception as error:  # a preview must never harm training
                self._failed(prompt, step, error)
            else:
                self.report.note(f"Preview {path}.")

    def _draw(self, index: int, prompt: PreviewPrompt, moment: str) -> Path:
        recipe = prompt.recipe
        time = datetime.now().strftime("%Y%m%d%H%M%S")
        stem = f"{self.name}_{moment}_{index:02d}_{time}"
        stem += f"_{recipe.seed}" if prompt.seeded else ""
        with self.explained("sample", recipe):
            latents = self.pipeline.latents(recipe)
        with self.explained("decode", recipe):
            pictures = chain.from_iterable(self.pipeline.frames(latents, recipe))
            words = metadata(recipe, **self.facts)
            if recipe.frames == 1:
                return write_images(pictures, self.folder, stem, words)[0]
            return write_video(pictures, self.folder / f"{stem}.mp4", recipe.fps, words)

    def _failed(self, prompt: PreviewPrompt, step: int, error: Exception) -> None:
        text = str(error) if isinstance(error, MusubiError) else repr(error)
        size = f"{prompt.recipe.width}x{prompt.recipe.height}x{prompt.recipe.frames}"
        self.report.warn(
            f"The preview {prompt.recipe.prompt[:40]!r} ({size}) after step {step} failed: {text} "
            "Training goes on."
        )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _asked(path: str | Path, architecture: Architecture, report: Report) -> list[dict[str, Any]]:
    return read_prompt_file(path, grammar(architecture, "preview"), note=report.warn)


def _present(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}
