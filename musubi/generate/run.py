"""The command `musubi generate`: models from files, recipes from words, files from both."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musubi.cache.tasks import device_of
from musubi.config import prompts
from musubi.config.generate import GenerateConfig
from musubi.config.memory import compiler_words
from musubi.config.options import own_options, paths, tokenizers
from musubi.config.recipe import ENGINE_OPTIONS, build_recipe
from musubi.config.task import Choice, choose_task
from musubi.data.video_writer import CRF, Quality
from musubi.errors import ConfigError, MusubiError, RunError, line_of, system_reason
from musubi.generate import loras, write
from musubi.generate.inputs import has_media
from musubi.generate.interactive import ask
from musubi.generate.loras import ChosenLora
from musubi.generate.pipeline import Pipeline
from musubi.memory.apply import placer
from musubi.memory.compiled import Compiler
from musubi.nn import attention
from musubi.plan.fit import encoders_for, policy_for
from musubi.plan.out_of_memory import explained
from musubi.plugin import Architecture, Policy, Recipe, Report, Task
from musubi.weights.dtypes import parse_dtype
from musubi.weights.load import inspect
from musubi.weights.nets import Nets


def run(config: GenerateConfig, architecture: Architecture, report: Report) -> None:
    """Generate, decode, or save a merged model, as the options say.

    Raises:
        MusubiError: Something given cannot be used; in a batch, once everything else is done.
    """
    if config.save_merged_model is not None:
        loras.save_merged(config, architecture, report)
        return
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
    chosen: Sequence[ChosenLora]
    folder: Path
    facts: Mapping[str, Any]
    policy: Policy
    report: Report
    adapted: weakref.ref[nn.Module] | None = None  # a strong one would keep it in memory

    @property
    def quality(self) -> Quality:
        """How videos are encoded, as the options say."""
        crf = CRF if self.config.crf is None else self.config.crf
        return Quality(crf=crf, bit_depth=self.config.bit_depth, lossless=self.config.lossless)

    def recipe(self, asked: Mapping[str, Any]) -> Recipe:
        """What the command line says, with `asked` laid over it, and every gap filled."""
        config = self.config
        width, height = config.width_height or (None, None)
        given = {
            "negative_prompt": config.negative_prompt,
            "width": width,
            "height": height,
            "frames": config.video_length,
            "fps": config.fps,
            "seed": config.seed,
            "steps": config.infer_steps,
            "solver": config.sample_solver,
            "flow_shift": config.flow_shift,
            "guidance_scale": config.guidance_scale,
            "cpu_noise": config.cpu_noise,
            **asked,
        }
        own = own_options(config, self.architecture)
        own |= {name: getattr(config, name) for name in ENGINE_OPTIONS}
        return build_recipe(self.architecture, self.choice, given, own, self.report)

    def make(self, recipes: Sequence[Recipe]) -> None:
        """Encode all, denoise all, decode and write all.

        What was denoised is on disk as latents until its frames are, so that a failure loses none.
        A recipe that fails in a batch is reported, and the others go on.
        """
        failed: list[str] = []
        made: list[tuple[Recipe, Path]] = []
        with explained(self.config, self.architecture, "text", policy=self.policy):
            self.pipeline.prepare(recipes)
        with explained(self.config, self.architecture, "load", policy=self.policy):
            self._adapt()
        for i, recipe in enumerate(recipes):
            self.report.note(_announce(recipe, i, len(recipes)))
            with _Collected(failed, recipe.prompt, self.report, len(recipes) > 1):
                made.append((recipe, self._denoise(recipe)))
        self.pipeline.free()
        for recipe, path in made:
            with _Collected(failed, recipe.prompt, self.report, len(recipes) > 1):
                self._finish(recipe, path)
        _raise(failed, len(recipes))

    def decode(self, files: Sequence[Path]) -> None:
        """Turn latent files into videos or images."""
        failed: list[str] = []
        for path in files:
            with _Collected(failed, str(path), self.report, len(files) > 1):
                found = write.read_latents(path)
                _check_channels(found.latents, self.architecture, path)
                name = write.stem(self.folder, found.seed, original=path.stem)
                fps = self.config.fps or found.fps or self.architecture.frame_rate
                notes = {} if self.config.no_metadata else found.metadata
                self._write(found.latents, name, float(fps), notes)
        _raise(failed, len(files))

    def batch(self, path: Path) -> None:
        """Make every prompt of a file; a line that cannot be read is reported and left out."""
        failed: list[str] = []
        recipes: list[Recipe] = []
        if path.suffix.lower() in (".toml", ".json"):
            recipes = [self.recipe(asked) for asked in prompts.read_prompt_file(path)]
        else:
            for number, line in prompts.read_lines(path):
                with _Collected(failed, f"{path}, line {number}", self.report, True):
                    recipes.append(self.recipe(prompts.parse_line(line)))
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
            "One prompt a line, with --w --h --f --d --s --g --fs --n. Ctrl+D (Windows: Ctrl+Z) ends."
        )
        for line in ask():
            try:
                self.make([self.recipe(prompts.parse_line(line))])
            except MusubiError as error:
                self.report.warn(str(error))

    def _denoise(self, recipe: Recipe) -> Path:
        with explained(self.config, self.architecture, "sample", policy=self.policy):
            latents = self.pipeline.latents(recipe)
        name = write.stem(self.folder, recipe.seed)
        return write.write_latents(
            latents, self.folder / f"{name}_latent.safetensors", self._notes(recipe)
        )

    def _finish(self, recipe: Recipe, path: Path) -> None:
        name = path.name.removesuffix("_latent.safetensors")
        if self.config.output_type != "latent":
            self._write(write.read_latents(path).latents, name, recipe.fps, self._notes(recipe))
        if self.config.output_type in ("video", "images"):
            path.unlink()
        else:
            self.report.note(f"Wrote {path}.")

    def _write(
        self, latents: torch.Tensor, name: str, fps: float, notes: Mapping[str, str]
    ) -> None:
        with explained(self.config, self.architecture, "decode", policy=self.policy):
            frames = self.pipeline.frames(latents, deep=self.quality.bit_depth > 8)
        kept = len(frames) - self.config.trim_tail_frames
        if kept < 1:
            raise ConfigError(
                f"--trim_tail_frames {self.config.trim_tail_frames} leaves nothing of "
                f"{len(frames)} frames.",
                fix="Trim fewer.",
            )
        frames = frames[:kept]
        if self.config.output_type in ("images", "latent_images"):
            written = write.write_images(frames, self.folder, name, notes)[0]
        else:
            written = write.write_video(
                frames, self.folder / f"{name}.mp4", fps, notes, self.quality
            )
        self.report.note(
            f"Wrote {written if len(frames) == 1 or written.suffix == '.mp4' else written.parent}."
        )

    def _notes(self, recipe: Recipe) -> dict[str, str]:
        return {} if self.config.no_metadata else write.metadata(recipe, **self.facts)

    def _adapt(self) -> None:
        """Attach the LoRAs to the DiT, unless they are merged or there already."""
        if not self.chosen or self.config.lora_mode == "merge":
            return
        dit = self.nets[self.architecture.dit.name]
        if self.adapted is None or self.adapted() is not dit:
            loras.attach(dit, self.chosen)
            self.adapted = weakref.ref(dit)


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


def _open(config: GenerateConfig, architecture: Architecture, report: Report) -> _Generation:
    given = paths(config, architecture)
    dit = architecture.dit
    if config.latent_path:
        choice, chosen = choose_task(architecture, config.task), []
    else:
        path = _path(architecture, dit.name, given)
        found = inspect(dit, path)
        choice = choose_task(architecture, config.task, found.numbers, path)
        chosen = loras.choose(config, architecture, found.shapes, report)
    for name in _needed(config, architecture, choice.task):
        _path(architecture, name, given)
    assert config.save_path is not None  # the config's own check
    folder = _writable(Path(config.save_path))
    merged = loras.merging(chosen) if chosen else None
    if config.lora_mode == "attach":
        merged = loras.merging_rest(chosen)
    device = device_of(config.device)
    policy = policy_for(config, architecture, trains=False, buckets=(), report=report)
    nets = Nets(
        architecture,
        given,
        device=device,
        dtypes=_dtypes(config, architecture),
        tokenizers=tokenizers(config, architecture),
        transforms={} if merged is None else {dit.name: merged},
        place=placer(
            {**encoders_for(config, architecture), dit.name: policy},
            device,
            compiler=Compiler(**compiler_words(config)),
            report=report,
        ),
        report=report,
    )
    own = own_options(config, architecture)
    pipeline = Pipeline(architecture, choice.task, own, nets, device=device, report=report)
    facts = {
        "architecture": architecture.name,
        "task": choice.variant.name if choice.variant else choice.task.name,
        "files": {name: path.name for name, path in given.items()},
        "loras": [{"file": c.file.path.name, "multiplier": c.multiplier} for c in chosen],
    }
    return _Generation(
        config, architecture, choice, pipeline, nets, chosen, folder, facts, policy, report
    )


def _needed(config: GenerateConfig, architecture: Architecture, task: Task) -> list[str]:
    """Names of the networks that will be used, so that a missing one is said before any is loaded."""
    vae = [c.name for c in architecture.of_role("vae", task)]
    if config.latent_path:
        return vae
    text = [c.name for c in architecture.of_role("text", task)]
    started = has_media(own_options(config, architecture), task)
    return [*text, *(vae if config.output_type != "latent" or started else ())]


def _path(architecture: Architecture, name: str, given: Mapping[str, Path]) -> Path:
    if name not in given:
        component = architecture.component(name)
        raise ConfigError(
            f"The {name} of {architecture.title} is needed, and no file was given.",
            fix=f"Give --{name} PATH. {component.help}",
        )
    return given[name]


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
    flags = {"dit": config.dit_dtype, "vae": config.vae_dtype, "text": config.text_encoder_dtype}
    given = {c.name: flags.get(c.role) for c in architecture.components}
    return {name: parse_dtype(text) for name, text in given.items() if text is not None}


def _check_channels(latents: torch.Tensor, architecture: Architecture, path: Path) -> None:
    if latents.shape[1] != architecture.latent_channels:
        raise ConfigError(
            f"{path} holds latents of {latents.shape[1]} channels, and {architecture.title} has "
            f"{architecture.latent_channels}.",
            fix="Give latents that were made with this architecture.",
        )


def _announce(recipe: Recipe, i: int, total: int) -> str:
    place = f"[{i + 1}/{total}] " if total > 1 else ""
    return (
        f"{place}{recipe.width}x{recipe.height}, {recipe.frames} frames, {recipe.steps} steps of "
        f"{recipe.solver}, shift {recipe.flow_shift:g}, guidance {recipe.guidance_scale:g}, "
        f"seed {recipe.seed}"
    )


def _raise(failed: Sequence[str], total: int) -> None:
    if failed:
        raise RunError(
            f"{len(failed)} of {total} failed: {'; '.join(failed)}.",
            fix="The reasons are above; the others are done.",
        )
