"""The command `musubi generate`: models from files, recipes from words, files from both."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musubi.cache.tasks import device_of
from musubi.config import prompts
from musubi.config.generate import GenerateConfig
from musubi.config.memory import compiler_words
from musubi.config.options import expert_ending, own_options, paths, tokenizers
from musubi.config.recipe import build_recipe, requested
from musubi.config.task import Choice, choose_task
from musubi.data.video_writer import CRF, Quality
from musubi.errors import ConfigError, MusubiError, RunError, line_of, system_reason
from musubi.generate import loras, write
from musubi.generate.finished import LATENTS, FinishedVideos
from musubi.generate.inputs import has_media, size_of
from musubi.generate.interactive import ask
from musubi.generate.loras import ChosenLora
from musubi.generate.pipeline import Pipeline
from musubi.generate.sections import KeptSections, pictures, unfinished
from musubi.memory.apply import placer
from musubi.memory.compiled import Compiler
from musubi.nn import attention
from musubi.plan.fit import encoders_for, policy_for
from musubi.plan.out_of_memory import explained
from musubi.plugin import Architecture, Policy, Recipe, Report, Task
from musubi.weights.dtypes import parse_dtype
from musubi.weights.load import Inspection, inspect
from musubi.weights.nets import Nets


def run(config: GenerateConfig, architecture: Architecture, report: Report) -> None:
    """Generate, decode, or save a merged model, as the options say.

    Raises:
        MusubiError: Something given cannot be used; in a batch, once everything else is done.
    """
    if config.save_merged_model is not None:
        loras.save_merged(config, architecture, report)
        return
    if config.from_file is not None:
        config = _with_tasks_of_prompts(config, architecture, Path(config.from_file))
    job = _open(config, architecture, report)
    with attention.use(config.attn_mode, split=config.split_attn):
        if config.latent_path:
            if config.prompt is not None:
                report.note("--prompt is not read: --latent_path has its latents already.")
            job.decode([Path(p) for p in config.latent_path])
        elif config.interactive:
            job.converse()
        elif config.from_file is not None:
            job.batch(Path(config.from_file))
        else:
            job.make([job.recipe({"prompt": config.prompt})])


@dataclass
class _Generation:
    config: GenerateConfig
    architecture: Architecture
    choice: Choice
    pipeline: Pipeline
    nets: Nets
    chosen: Mapping[str, Sequence[ChosenLora]]
    folder: Path
    facts: Mapping[str, Any]
    policy: Policy
    report: Report
    drawn: list[Recipe] = field(default_factory=list[Recipe])  # whose seed nobody gave

    @property
    def quality(self) -> Quality:
        """How videos are encoded, as the options say."""
        crf = CRF if self.config.crf is None else self.config.crf
        return Quality(crf=crf, bit_depth=self.config.bit_depth, lossless=self.config.lossless)

    def recipe(self, asked: Mapping[str, Any]) -> Recipe:
        """What the command line says, with `asked` laid over it, and every gap filled."""
        config = self.config
        given, own = requested(config, self.architecture)
        recipe = build_recipe(
            self.architecture, self.choice, {**given, **asked}, own, self.report, size_of=size_of
        )
        if asked.get("seed", given.get("seed")) in (None, -1):
            self.drawn.append(recipe)
        if recipe.frames <= config.trim_tail_frames:
            raise ConfigError(
                f"--trim_tail_frames {config.trim_tail_frames} leaves nothing of {recipe.frames} frames.",
                fix="Trim fewer.",
            )
        return recipe

    @property
    def grammar(self) -> prompts.Grammar:
        """What prompt lines may say."""
        return prompts.grammar(self.architecture)

    def make(self, recipes: Sequence[Recipe]) -> None:
        """Encode all, denoise all, decode and write all.

        What was denoised is on disk as latents until its frames are, so that a failure loses none.
        A recipe that fails in a batch is reported, and the others go on. With `--continue` nothing
        is made again that is there.
        """
        failed: list[str] = []
        several, total = len(recipes) > 1, len(recipes)
        left, made = self._left(recipes)
        with explained(self.config, self.architecture, "text", policy=self.policy):
            self.pipeline.prepare(left)
        for i, recipe in enumerate(left):
            self.report.note(_announce(recipe, i, len(left)))
            with _Collected(failed, recipe.prompt, self.report, several):
                made.append(self._denoise(recipe))
        self.pipeline.free()
        for recipe, path in made:
            with _Collected(failed, recipe.prompt, self.report, several):
                self._finish(recipe, path)
        _raise(failed, total)

    def decode(self, files: Sequence[Path]) -> None:
        """Turn latent files into videos or images."""
        failed: list[str] = []
        for path in files:
            with _Collected(failed, str(path), self.report, len(files) > 1):
                found = write.read_latents(path)
                _check_channels(found.latents, self.architecture, self.choice.task, path)
                name = write.stem(self.folder, found.seed, original=path.stem)
                fps = self.config.fps or found.fps or self.choice.task.shape.frame_rate
                notes = {} if self.config.no_metadata else found.metadata
                self._write(found.latents, name, float(fps), notes)
        _raise(failed, len(files))

    def batch(self, path: Path) -> None:
        """Make every prompt of a file; a line that cannot be read is reported and left out."""
        failed: list[str] = []
        recipes: list[Recipe] = []
        if path.suffix.lower() in (".toml", ".json"):
            recipes = [self.recipe(asked) for asked in prompts.read_prompt_file(path, self.grammar)]
        else:
            for number, line in prompts.read_lines(path):
                with _Collected(failed, f"{path}, line {number}", self.report, True):
                    recipes.append(self.recipe(prompts.parse_line(line, self.grammar)))
        if not recipes and not failed:
            raise ConfigError(f"{path} holds no prompt.", fix="Write one prompt a line.")
        try:
            if recipes:
                self.make(recipes)
        except RunError as error:
            failed.append(error.what)
        _raise(failed, len(recipes) + len(failed))

    def converse(self) -> None:
        """Ask for prompt after prompt until the input ends."""
        self.pipeline.park = True
        self.report.note(
            f"One prompt a line, with {' '.join(f'--{n}' for n in self.grammar.letters)}. "
            "Ctrl+D (Windows: Ctrl+Z) ends."
        )
        for line in ask():
            try:
                self.make([self.recipe(prompts.parse_line(line, self.grammar))])
            except MusubiError as error:
                self.report.warn(str(error))

    def _left(self, recipes: Sequence[Recipe]) -> tuple[list[Recipe], list[tuple[Recipe, Path]]]:
        """What has still to be denoised, and what has only to be decoded: its latents are there."""
        if not self.config.continue_video:
            return list(recipes), []
        there, output = FinishedVideos(self.folder), self.config.output_type
        left: list[Recipe] = []
        denoised: list[tuple[Recipe, Path]] = []
        for recipe in recipes:
            found = there.take(recipe, self.facts, output, any_seed=self._any_seed(recipe))
            if found is None:
                left.append(recipe)
            elif found.complete(output):
                self.report.note(f"{found.name} in {self.folder} is there already.")
            else:
                path = self.folder / f"{found.name}{LATENTS}"
                self.report.note(f"{path} is there already, and is decoded.")
                denoised.append((found.recipe, path))
        return left, denoised

    def _any_seed(self, recipe: Recipe) -> bool:
        return any(recipe is one for one in self.drawn)

    def _denoise(self, recipe: Recipe) -> tuple[Recipe, Path]:
        """Solve it, or what is left of it; the recipe as it was made, and the file of its latents."""
        kept = self._kept(recipe)
        try:
            with explained(self.config, self.architecture, "sample", policy=self.policy):
                latents = self.pipeline.latents(kept.recipe, kept)
        except BaseException:
            if kept.count:
                self.report.note(
                    f"{kept.count} sections of {kept.name} are kept in {self.folder}; the same "
                    "command with --continue goes on from them."
                )
            raise
        path = write.write_latents(
            latents, self.folder / f"{kept.name}_latent.safetensors", self._notes(kept.recipe)
        )
        kept.clear()
        return kept.recipe, path

    def _kept(self, recipe: Recipe) -> KeptSections:
        """Where its sections are kept: those of an unfinished video, when it goes on from one."""
        found = None
        if self.config.continue_video:
            any_seed = self._any_seed(recipe)
            found = unfinished(self.folder, recipe, self.facts, any_seed=any_seed)
            if found is None:
                self.report.note(f"No unfinished video of this recipe is in {self.folder}.")
        name, recipe = found or (write.stem(self.folder, recipe.seed), recipe)
        shown = self.config.output_type in ("video", "both")
        return KeptSections(
            recipe,
            name,
            self.folder,
            facts=self.facts,
            decode=self._pictures if shown else None,
            report=self.report,
        )

    def _pictures(self, latents: torch.Tensor, recipe: Recipe) -> Iterator[np.ndarray]:
        return pictures(self.pipeline.frames(latents, recipe))

    def _finish(self, recipe: Recipe, path: Path) -> None:
        name = path.name.removesuffix("_latent.safetensors")
        if self.config.output_type != "latent":
            latents = write.read_latents(path).latents
            self._write(latents, name, recipe.fps, self._notes(recipe), recipe)
        if self.config.output_type in ("video", "images"):
            path.unlink()
        else:
            self.report.note(f"Wrote {path}.")

    def _write(
        self,
        latents: torch.Tensor,
        name: str,
        fps: float,
        notes: Mapping[str, str],
        recipe: Recipe | None = None,
    ) -> None:
        trimmed = self.config.trim_tail_frames
        with explained(self.config, self.architecture, "decode", policy=self.policy):
            chunks = self.pipeline.frames(latents, recipe, deep=self.quality.bit_depth > 8)
            shown = _without_tail(chunks, trimmed)
            first = list(islice(shown, 2))
            if not first:
                raise ConfigError(
                    f"--trim_tail_frames {trimmed} leaves no frame.", fix="Trim fewer."
                )
            every = chain(first, shown)
            if self.config.output_type in ("images", "latent_images"):
                written = write.write_images(every, self.folder, name, notes)[0]
            else:
                path = self.folder / f"{name}.mp4"
                written = write.write_video(every, path, fps, notes, self.quality)
        alone = len(first) == 1 or written.suffix == ".mp4"
        self.report.note(f"Wrote {written if alone else written.parent}.")

    def _notes(self, recipe: Recipe) -> dict[str, str]:
        return (
            {}
            if self.config.no_metadata
            else write.metadata(recipe, written=self.written, **self.facts)
        )

    @property
    def written(self) -> list[str]:
        """Options that older tools wrote as metadata keys of their own."""
        return [option.name for option in self.architecture.options if option.written]


class _Collected:
    """Turns a user's error into a warning and a line of `failed`, when others are to go on."""

    def __init__(self, failed: list[str], name: str, report: Report, several: bool) -> None:
        self.failed, self.name, self.report, self.several = failed, name, report, several

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        told = (MusubiError, MemoryError, torch.OutOfMemoryError, OSError)
        if isinstance(error, Exception) and not isinstance(error, told):
            # What a library raises for one prompt or file is that one's failure.
            failure = RunError(f"{self.name[:60]!r} failed: {line_of(error)}.", fix="See --debug.")
            if not self.several:
                raise failure from error
            error = failure
        if not isinstance(error, MusubiError) or not self.several:
            return False
        self.report.warn(f"{self.name}: {error}")
        self.failed.append(self.name)
        return True


def _with_tasks_of_prompts(
    config: GenerateConfig, architecture: Architecture, path: Path
) -> GenerateConfig:
    """The command as if it had said what each prompt of its file says: an option that means a task."""
    asked = _readable(path, prompts.grammar(architecture))
    meant = [o.name for o in architecture.options if o.task and "generate" in o.commands]
    said = {
        name: asked[0][name]
        for name in meant
        if asked and not getattr(config, name) and all(one.get(name) for one in asked)
    }
    return config.model_copy(update=said)


def _readable(path: Path, grammar: prompts.Grammar) -> list[Mapping[str, Any]]:
    """The prompts of a file without those that cannot be read, which the batch reports."""
    if path.suffix.lower() in (".toml", ".json"):
        return list(prompts.read_prompt_file(path, grammar))
    found: list[Mapping[str, Any]] = []
    for _, line in prompts.read_lines(path):
        with suppress(MusubiError):
            found.append(prompts.parse_line(line, grammar))
    return found


def _open(config: GenerateConfig, architecture: Architecture, report: Report) -> _Generation:
    given = paths(config, architecture)
    own = own_options(config, architecture)
    if config.latent_path:
        choice = choose_task(architecture, config.task, given=given, options=own)
        found: dict[str, Inspection] = {}
    else:
        choice, found = _inspected(config, architecture, given, own)
    chosen = {name: _loras(config, architecture, name, found[name], report) for name in found}
    for name in _needed(config, architecture, choice.task):
        architecture.path_of(name, given)
    _say_experts(config, choice.task, found, report)
    assert config.save_path is not None  # the config's own check
    folder = _writable(Path(config.save_path))
    device = device_of(config.device)
    policy = policy_for(config, architecture, trains=False, buckets=(), report=report)
    attached = config.lora_mode == "attach"
    merging = {
        n: loras.merging_rest(c) if attached else loras.merging(c) for n, c in chosen.items() if c
    }
    nets = Nets(
        architecture,
        given,
        device=device,
        dtypes=_dtypes(config, architecture),
        tokenizers=tokenizers(config, architecture),
        transforms={name: found for name, found in merging.items() if found is not None},
        place=placer(
            {
                **encoders_for(config, architecture),
                **{d.name: policy for d in architecture.of_role("dit", choice.task)},
            },
            device,
            compiler=Compiler(**compiler_words(config)),
            report=report,
        ),
        loaded=lambda name, module: (
            loras.attach(module, chosen.get(name, ())) if attached else None
        ),
        report=report,
    )
    pipeline = Pipeline(architecture, choice.task, own, nets, device=device, report=report)
    pipeline.park_experts = config.offload_inactive_dit
    facts = {
        "architecture": architecture.name,
        "task": choice.variant.name if choice.variant else choice.task.name,
        "files": {name: path.name for name, path in given.items()},
        "loras": [
            {
                "file": c.file.path.name,
                "multiplier": c.multiplier,
                **({} if name == architecture.dit.name else {"network": name}),
            }
            for name, files in chosen.items()
            for c in files
        ],
    }
    return _Generation(
        config, architecture, choice, pipeline, nets, chosen, folder, facts, policy, report
    )


def _inspected(
    config: GenerateConfig,
    architecture: Architecture,
    given: Mapping[str, Path],
    own: Mapping[str, Any],
) -> tuple[Choice, dict[str, Inspection]]:
    """The task, and what the file of each of its denoisers holds."""
    denoisers = [c for c in architecture.components if c.role == "dit" and c.name in given]
    if not denoisers:
        architecture.path_of(architecture.dit.name, given)
    found: dict[str, Inspection] = {}
    choices: list[Choice] = []
    for component in denoisers:
        path = given[component.name]
        found[component.name] = inspect(component, path)
        numbers = found[component.name].numbers
        choices.append(
            choose_task(architecture, config.task, numbers, path, given=given, options=own)
        )
    choice = choices[0]
    for component in denoisers:
        if component.name not in choice.task.denoisers:
            raise ConfigError(
                f"The task {choice.task.name!r} has no {component.name}.",
                fix=f"Leave out --{component.name}, or give another --task.",
            )
    return choice, found


def _loras(
    config: GenerateConfig,
    architecture: Architecture,
    name: str,
    found: Inspection,
    report: Report,
) -> list[ChosenLora]:
    ending = expert_ending(architecture, architecture.component(name))
    return loras.choose(config, architecture, found.shapes, report, denoiser=name, ending=ending)


def _say_experts(
    config: GenerateConfig, task: Task, found: Mapping[str, Inspection], report: Report
) -> None:
    """Say what becomes of a task of several denoisers, and of options that are about them."""
    if config.offload_inactive_dit and len(found) < 2:
        report.warn("--offload_inactive_dit changes nothing: there is one denoiser.")
    absent = [name for name in task.denoisers if name not in found]
    if found and absent:
        report.warn(
            f"The task {task.name!r} has a {' and a '.join(absent)} too, which was not given: "
            f"{next(iter(found))} denoises at every noise level."
        )


def _needed(config: GenerateConfig, architecture: Architecture, task: Task) -> list[str]:
    """Names of the networks that will be used, so that a missing one is said before any is loaded."""
    vae = [c.name for c in architecture.of_role("vae", task)]
    if config.latent_path:
        return vae
    text = [c.name for c in architecture.of_role("text", task)]
    started = has_media(own_options(config, architecture), task)
    image = [c.name for c in architecture.of_role("image", task)] if started else []
    return [*text, *image, *(vae if config.output_type != "latent" or started else ())]


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ConfigError(
            f"The folder {folder} of --save_path cannot be written: {system_reason(error)}.",
            fix="Give another folder.",
        ) from error


def _dtypes(config: GenerateConfig, architecture: Architecture) -> dict[str, torch.dtype]:
    flags = {
        "dit": config.dit_dtype,
        "vae": config.vae_dtype,
        "text": config.text_encoder_dtype,
        "image": config.image_encoder_dtype,
    }
    given = {c.name: flags.get(c.role) for c in architecture.components}
    return {name: parse_dtype(text) for name, text in given.items() if text is not None}


def _check_channels(
    latents: torch.Tensor, architecture: Architecture, task: Task, path: Path
) -> None:
    if latents.shape[1] != task.shape.channels:
        raise ConfigError(
            f"{path} holds latents of {latents.shape[1]} channels, and {architecture.title} has "
            f"{task.shape.channels}.",
            fix="Give latents that were made with this architecture.",
        )


def _without_tail(chunks: Iterator[np.ndarray], trimmed: int) -> Iterator[np.ndarray]:
    """The pictures of all chunks, but for the last ones."""
    held: deque[np.ndarray] = deque()
    for chunk in chunks:
        for picture in chunk:
            held.append(picture)
            if len(held) > trimmed:
                yield held.popleft()


def _announce(recipe: Recipe, i: int, total: int) -> str:
    place = f"[{i + 1}/{total}] " if total > 1 else ""
    shift = "" if recipe.flow_shift is None else f"shift {recipe.flow_shift:g}, "
    return (
        f"{place}{recipe.width}x{recipe.height}, {recipe.frames} frames, {recipe.steps} steps of "
        f"{recipe.solver}, {shift}guidance {recipe.guidance_scale:g}, "
        f"seed {recipe.seed}"
    )


def _raise(failed: Sequence[str], total: int) -> None:
    if failed:
        raise RunError(
            f"{len(failed)} of {total} failed: {'; '.join(failed)}.",
            fix="The reasons are above; the others are done.",
        )
