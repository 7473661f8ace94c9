"""One command's work: from recipes to latents to files, with failures handled."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musubi import stopping
from musubi.config import prompts
from musubi.config.generate import GenerateConfig
from musubi.config.recipe import MOST_SEED, build_recipe, requested
from musubi.config.task import Choice
from musubi.data.video_writer import CRF, Quality
from musubi.errors import ConfigError, counted
from musubi.generate import write
from musubi.generate.failures import Failures, as_failure, decoding, short
from musubi.generate.finished import LATENTS, FinishedVideos
from musubi.generate.inputs import size_of
from musubi.generate.interactive import ask
from musubi.generate.kin import check_latents
from musubi.generate.pipeline import Pipeline
from musubi.generate.sections import KeptSections, pictures, unfinished
from musubi.plan.beside import decoding_fits
from musubi.plan.out_of_memory import explained, is_out_of_memory
from musubi.plugin import Architecture, Policy, Recipe, Report
from musubi.weights.load import Inspection


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe, and its name in messages."""

    recipe: Recipe
    name: str


@dataclass
class Generation:
    """One command with its networks.

    Args:
        config: The options.
        architecture: The architecture of the networks.
        choice: The task and variant.
        pipeline: The networks.
        found: Denoiser → what was found in its file.
        folder: The folder for all results.
        facts: Everything besides the recipe that decides the result.
        policy: The memory policy of the denoisers.
        report: Shows messages and progress.
    """

    config: GenerateConfig
    architecture: Architecture
    choice: Choice
    pipeline: Pipeline
    found: Mapping[str, Inspection]
    folder: Path
    facts: Mapping[str, Any]
    policy: Policy
    report: Report
    drawn: list[Recipe] = field(default_factory=list[Recipe])  # whose seed nobody gave
    _beside: dict[tuple[int, int, int], bool] = field(default_factory=dict)

    @property
    def quality(self) -> Quality:
        """How videos are encoded, as the options say."""
        crf = CRF if self.config.crf is None else self.config.crf
        return Quality(crf=crf, bit_depth=self.config.bit_depth, lossless=self.config.lossless)

    @property
    def grammar(self) -> prompts.Grammar:
        """The options that prompt lines may use."""
        return prompts.grammar(self.architecture)

    def requests(self, asked: Mapping[str, Any], name: str) -> list[NamedRecipe]:
        """The recipes of the command line, overridden by `asked`: one for each of `--num_videos`.

        Raises:
            ConfigError: The recipe cannot be generated.
        """
        config = self.config
        given, own = requested(config, self.architecture)
        if not asked.get("prompt"):
            raise ConfigError("There is no prompt.", fix="Write what to show, then the options.")
        recipe = build_recipe(
            self.architecture, self.choice, {**given, **asked}, own, self.report, size_of=size_of
        )
        if recipe.frames <= config.trim_tail_frames:
            raise ConfigError(
                f"--trim_tail_frames {config.trim_tail_frames} leaves nothing of "
                f"{counted(recipe.frames, 'frame')}.",
                fix=f"Give --trim_tail_frames {max(recipe.frames - 1, 0)} or less.",
            )
        if self.choice.task.check_network is not None:
            for inspection in self.found.values():
                self.choice.task.check_network(recipe, inspection.numbers)
        count = config.num_videos
        if recipe.seed > MOST_SEED - count + 1:
            raise ConfigError(
                f"From the seed {recipe.seed} on there are no {count} seeds.",
                fix=f"Give --seed {MOST_SEED - count + 1} or less.",
            )
        seeds = range(recipe.seed, recipe.seed + count)
        made = [
            NamedRecipe(replace(recipe, seed=seed), f"{name}, seed {seed}" if count > 1 else name)
            for seed in seeds
        ]
        if asked.get("seed", given.get("seed")) in (None, -1):
            self.drawn += [one.recipe for one in made]
        return made

    def prompt(self) -> None:
        """Make the videos of `--prompt`."""
        asked = {"prompt": self.config.prompt}
        made = self.requests(asked, short(self.config.prompt or ""))
        failures = Failures(self.report, len(made), one="video")
        self.make(made, failures)
        failures.tell()

    def batch(self, path: Path) -> None:
        """Make every prompt of a file; a prompt that cannot be read or made is reported and skipped."""
        entries = prompts.read_entries(path, self.grammar)
        if not entries:
            raise ConfigError(f"{path} holds no prompt.", fix="Write one prompt a line.")
        failures = Failures(self.report, len(entries) * self.config.num_videos)
        wanted: list[NamedRecipe] = []
        for name, read in entries:
            try:
                wanted += self.requests(read(), name)
            except Exception as error:  # whatever a line says, the others are made
                failures.add(name, as_failure(name, error), self.config.num_videos)
        self.make(wanted, failures, alone=False)
        failures.tell()

    def converse(self) -> None:
        """Ask for prompt after prompt until the input ends."""
        self.pipeline.park = True
        self.report.note(
            f"One prompt a line, with {' '.join(f'--{n}' for n in self.grammar.letters)}. "
            "Ctrl+D (Windows: Ctrl+Z) ends."
        )
        failures = Failures(self.report)
        for line in ask():
            failures.total += self.config.num_videos
            try:
                wanted = self.requests(prompts.parse_line(line, self.grammar), short(line))
            except Exception as error:  # one line never ends the session
                failures.add(short(line), as_failure(short(line), error), self.config.num_videos)
                continue
            try:
                self.make(wanted, failures, alone=False)
            except Exception as error:
                failures.add(short(line), as_failure(short(line), error))
        if failures.count:  # each was told when it was typed, and could be typed again
            self.report.warn(str(failures.summary()))

    def decode(self, files: Sequence[Path]) -> None:
        """Turn latent files into videos or images; all files are checked before the VAE is loaded."""
        failures = Failures(self.report, len(files), one="file")
        alone = len(files) == 1
        good: list[Path] = []
        for path in files:
            with failures.of(str(path), alone=alone, fatal=()):
                self._check_latents(path)
                good.append(path)
        if len(good) > 1:
            self.pipeline.keep = self._vaes
        for path in good:
            with failures.of(str(path), alone=alone):
                found = write.read_latents(path)
                name = write.stem(self.folder, found.seed, original=path.stem)
                fps = self.config.fps or found.fps or self.choice.task.shape.frame_rate
                notes = {} if self.config.no_metadata else found.metadata
                with self._explained("decode"):
                    self._write(found.latents, name, float(fps), notes)
        self.pipeline.drop()
        failures.tell()

    def make(
        self, wanted: Sequence[NamedRecipe], failures: Failures, *, alone: bool | None = None
    ) -> None:
        """Encode all requests, denoise all, then decode and write all: each as soon as memory
        allows.

        What was denoised is on disk as latents until its frames are, so that a failure loses none.
        With `--continue` nothing is made again that is there.

        Args:
            wanted: What to make.
            failures: Collects the failures of single requests.
            alone: Raise a failure instead of collecting it; None: only if there is one request.
        """
        alone = len(wanted) == 1 if alone is None else alone
        if len(wanted) > 1:
            self.pipeline.keep = self._vaes
        left, made = self._left(wanted)
        try:
            for i, one in enumerate(ready := self._prepared(left, failures, alone)):
                self.report.note(_announce(one.recipe, i, len(ready)))
                with failures.of(one.name, alone=alone):
                    recipe, path = self._denoise(one.recipe)
                    made.append((NamedRecipe(recipe, one.name), path))
                if made and self._fits_beside(one.recipe, last=i == len(ready) - 1):
                    self._finish_beside(made, failures)
            self.pipeline.free()
            while made:
                one, path = made[0]
                with failures.of(one.name, alone=alone):
                    self._finish(one.recipe, path)
                del made[0]
        except BaseException as error:
            self._tell_kept([path for _, path in made], stopped=not isinstance(error, Exception))
            raise
        finally:
            if not self.pipeline.park:
                self.pipeline.drop()

    @property
    def _vaes(self) -> set[str]:
        return {c.name for c in self.architecture.of_role("vae", self.choice.task)}

    def _explained(self, where: Any) -> Any:
        return explained(self.config, self.architecture, where, policy=self.policy)

    def _prepared(
        self, wanted: Sequence[NamedRecipe], failures: Failures, alone: bool
    ) -> list[NamedRecipe]:
        """The requests whose texts and pictures could be encoded."""
        of = {id(one.recipe): one for one in wanted}

        def failed(recipe: Recipe, error: Exception) -> None:
            with failures.of(of[id(recipe)].name), self._explained("text"):
                raise error

        with self._explained("text"):
            ready = self.pipeline.prepare([one.recipe for one in wanted], None if alone else failed)
        return [of[id(recipe)] for recipe in ready]

    def _left(
        self, wanted: Sequence[NamedRecipe]
    ) -> tuple[list[NamedRecipe], list[tuple[NamedRecipe, Path]]]:
        """The requests that must be denoised, and those that only need decoding, since their latents exist."""
        if not self.config.continue_video:
            return list(wanted), []
        there, output = FinishedVideos(self.folder), self.config.output_type
        left: list[NamedRecipe] = []
        denoised: list[tuple[NamedRecipe, Path]] = []
        for one in wanted:
            any_seed = self._any_seed(one.recipe)
            found = there.take(one.recipe, self.facts, output, any_seed=any_seed)
            if found is None:
                left.append(one)
            elif found.complete(output):
                self.report.note(f"{found.name} in {self.folder} is there already.")
            else:
                path = self.folder / f"{found.name}{LATENTS}"
                self.report.note(f"{path} is there already, and is decoded.")
                denoised.append((NamedRecipe(found.recipe, one.name), path))
        return left, denoised

    def _any_seed(self, recipe: Recipe) -> bool:
        return any(recipe is one for one in self.drawn)

    def _denoise(self, recipe: Recipe) -> tuple[Recipe, Path]:
        """Denoise a recipe, or the sections that are left of it. Returns the recipe used, and the
        file of its latents.
        """
        kept = self._kept(recipe)
        try:
            with self._explained("sample"):
                latents = self.pipeline.latents(kept.recipe, kept)
        except BaseException:
            if kept.count:
                self.report.note(
                    f"Kept {counted(kept.count, 'section')} of {kept.name} in {self.folder}; the same "
                    "command with --continue goes on from there."
                )
            raise
        path = write.write_latents_somewhere(
            latents,
            self.folder / f"{kept.name}_latent.safetensors",
            self._notes(kept.recipe),
            self.report,
        )
        kept.clear()
        return kept.recipe, path

    def _kept(self, recipe: Recipe) -> KeptSections:
        """The store for a recipe's sections; it may hold those of an unfinished video."""
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

    # from latents to files

    def _fits_beside(self, recipe: Recipe, *, last: bool) -> bool:
        """Whether frames can be decoded while the denoisers stay on the device.

        After the last prompt they need not stay: they are freed first.
        """
        if last or self.config.output_type == "latent":
            return False
        size = (recipe.width, recipe.height, recipe.frames)
        if size not in self._beside:
            self._beside[size] = decoding_fits(
                self.config, self.architecture, size, self.pipeline.device
            )
        return self._beside[size]

    def _finish_beside(self, made: list[tuple[NamedRecipe, Path]], failures: Failures) -> None:
        while made:
            one, path = made[0]
            recipe = one.recipe
            with failures.of(one.name):
                try:
                    self._show(recipe, path)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        self._tell_kept([path])
                        raise
                    self._beside[recipe.width, recipe.height, recipe.frames] = False
                    self.report.note(
                        "Videos are decoded at the end: they do not fit beside the DiT."
                    )
                    return
                except Exception:
                    self._tell_kept([path])
                    raise
            del made[0]

    def _finish(self, recipe: Recipe, path: Path) -> None:
        try:
            with self._explained("decode"):
                self._show(recipe, path)
        except Exception:
            self._tell_kept([path])
            raise

    def _show(self, recipe: Recipe, path: Path) -> None:
        name = path.name.removesuffix("_latent.safetensors")
        if self.config.output_type != "latent":
            latents = write.read_latents(path).latents
            self._write(latents, name, recipe.fps, self._notes(recipe), recipe)
        if self.config.output_type in ("video", "images"):
            path.unlink()
        else:
            self.report.note(f"Wrote {path}.")

    def _tell_kept(self, files: Sequence[Path], *, stopped: bool = False) -> None:
        """Show where latents without frames are, and the command that decodes them."""
        files = [path for path in files if path.is_file()]
        if not files or self.config.output_type == "latent":
            return
        choice = self.choice
        task = choice.variant.name if choice.variant else choice.task.name
        command = decoding(self.config, self.architecture, task, files)
        said = f"{'The latents are' if len(files) == 1 else f'Latents of {len(files)} videos are'} kept"
        self.report.warn(
            f"{said} in {', '.join(map(str, files))}. This command decodes them:\n{command}"
        )
        if stopped and len(files) == 1:
            stopping.go_on_with(command)

    def _write(
        self,
        latents: torch.Tensor,
        name: str,
        fps: float,
        notes: Mapping[str, str],
        recipe: Recipe | None = None,
    ) -> None:
        trimmed = self.config.trim_tail_frames
        chunks = self.pipeline.frames(latents, recipe, deep=self.quality.bit_depth > 8)
        shown = _without_tail(chunks, trimmed)
        first = list(islice(shown, 2))
        if not first:
            raise ConfigError(f"--trim_tail_frames {trimmed} leaves no frame.", fix="Trim fewer.")
        every = chain(first, shown)
        if self.config.output_type in ("images", "latent_images"):
            written = write.write_images(every, self.folder, name, notes)[0]
        else:
            path = self.folder / f"{name}.mp4"
            written = write.write_video(every, path, fps, notes, self.quality)
        alone = len(first) == 1 or written.suffix == ".mp4"
        self.report.note(f"Wrote {written if alone else written.parent}.")

    def _check_latents(self, path: Path) -> None:
        found = write.read_latents(path)
        check_latents(found, path, self.architecture, self.choice.task, self.report)
        shape = self.choice.task.shape
        frames = (found.latents.shape[2] - 1) * shape.period + 1
        if frames <= self.config.trim_tail_frames:
            raise ConfigError(
                f"--trim_tail_frames {self.config.trim_tail_frames} leaves nothing of {path}, which is "
                f"{frames} frames.",
                fix="Trim fewer.",
            )

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


def _without_tail(chunks: Iterator[np.ndarray], trimmed: int) -> Iterator[np.ndarray]:
    """The pictures of all chunks, without the last `trimmed` ones."""
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
