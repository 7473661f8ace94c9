"""Previews: videos that the network in training generates from a set of prompts."""

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

from musubi.config.options import own_options, paths
from musubi.config.prompts import grammar, read_prompt_file
from musubi.config.recipe import preview_recipe
from musubi.config.task import Choice
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, MusubiError
from musubi.generate.inputs import size_of
from musubi.generate.pipeline import Pipeline
from musubi.generate.write import metadata, write_images, write_video
from musubi.plan import out_of_memory
from musubi.plan.workload import Bucket
from musubi.plugin import Architecture, Policy, Recipe, Report
from musubi.train.checkpoints import Names
from musubi.train.seeds import derive
from musubi.weights.nets import Nets

Rescued = Callable[[Literal["sample", "decode"], Recipe], AbstractContextManager[None]]


@dataclass(frozen=True)
class PreviewPrompt:
    """One preview, its number, and whether its prompt has a seed (the file name then has the seed too)."""

    recipe: Recipe
    seeded: bool
    index: int


def read_prompts(
    path: str | Path,
    architecture: Architecture,
    choice: Choice,
    options: Mapping[str, Any],
    *,
    seed: int,
    report: Report,
) -> list[PreviewPrompt]:
    """Read the prompts of `--sample_prompts`; a prompt without a seed gets one that stays the same
    for the whole run.

    Raises:
        ConfigError: The file cannot be read, or a prompt asks for something that cannot be
            generated.
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
        prompts.append(PreviewPrompt(recipe, seeded, index))
    return prompts


def open_gallery(
    config: TrainConfig,
    architecture: Architecture,
    choice: Choice,
    nets: Nets,
    *,
    names: Names,
    policy: Policy,
    report: Report,
    share: slice = slice(None),
) -> Gallery:
    """Prepare previews: encode the prompts.

    Args:
        config: The settings of the run, with `--sample_prompts`.
        architecture: The architecture of the networks.
        choice: The task.
        nets: The networks around the denoiser.
        names: Of the run's files.
        policy: The memory policy of the denoiser.
        report: Told of what failed.
        share: Which of the prompts this process draws.

    Raises:
        ConfigError: A file that previews need is not given, or a prompt cannot be generated.
    """
    _check_files(config, architecture, choice)
    options = own_options(config, architecture)
    prompts = read_prompts(
        config.sample_prompts or "",
        architecture,
        choice,
        options,
        seed=config.seed or 0,
        report=report,
    )[share]
    pipeline = Pipeline(architecture, choice.task, options, nets, device=nets.device, report=report)
    pipeline.prepare([prompt.recipe for prompt in prompts])
    pipeline.park = True  # the text encoders are freed; the VAE, which is small, is kept
    return Gallery(
        pipeline,
        prompts,
        names.folder / "sample",
        names.name,
        facts={"architecture": architecture.name, "task": choice.task.name},
        report=report,
        explained=lambda where, recipe: out_of_memory.explained(
            config,
            architecture,
            where,
            policy=policy,
            buckets=(Bucket(recipe.width, recipe.height, recipe.frames),),
        ),
    )


def _check_files(config: TrainConfig, architecture: Architecture, choice: Choice) -> None:
    given = paths(config, architecture)
    for name in choice.task.components:
        component = architecture.component(name)
        if name not in given and component.role in ("vae", "text", "image"):
            raise ConfigError(
                f"Previews need --{name}: {component.help}",
                fix=f"Add --{name} PATH, or leave out --sample_prompts.",
            )


class Gallery:
    """Generates the previews, and writes them into `{output_dir}/sample`.

    Args:
        pipeline: The generation pipeline around the network in training.
        prompts: The previews to generate.
        folder: `{output_dir}/sample`.
        name: `--output_name`.
        facts: Everything else that decides the result, for the metadata.
        report: Told of what failed.
        explained: Makes a context that turns running out of device memory into an error that says
            what to change.
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
        """Generate every preview. If one fails, the failure is reported, and the next one is made."""
        moment = f"e{epoch:06d}" if epoch is not None else f"{step:06d}"
        for prompt in self.prompts:
            try:
                path = self._draw(prompt, moment)
            except Exception as error:  # a preview must never harm training
                self._failed(prompt, step, error)
            else:
                self.report.note(f"Preview {path}.")

    def _draw(self, prompt: PreviewPrompt, moment: str) -> Path:
        recipe = prompt.recipe
        time = datetime.now().strftime("%Y%m%d%H%M%S")
        stem = f"{self.name}_{moment}_{prompt.index:02d}_{time}"
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
