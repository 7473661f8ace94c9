"""`musubi demo`: teaches the tiny world something new, by the commands that a user types."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from musubi.config.demo import DemoConfig
from musubi.demo import lesson, pictures, released, shapes
from musubi.demo.page import Story, write_page
from musubi.errors import ConfigError, RunError
from musubi.plugin import Report

MARK = ".musubi-demo"
STEPS, PROMPTS, CONTROLS, EVERY = 260, 6, 4, 65
FAST_STEPS, FAST_PROMPTS, FAST_CONTROLS, FAST_EVERY = 4, 2, 1, 2


def run(config: DemoConfig, report: Report) -> None:
    """Make the folder, run the commands in it, and show what came of it.

    Raises:
        ConfigError: The folder holds something else.
        RunError: A command failed.
    """
    folder = Path(config.out)
    _prepare(folder, keep=config.keep)
    demo = Demo(folder, report, fast=config.fast)
    demo.teach()
    demo.show()


class Demo:
    """One demo.

    Args:
        folder: Where everything is put; paths in commands begin with it.
        report: For the user.
        fast: Few steps and prompts.
    """

    def __init__(self, folder: Path, report: Report, *, fast: bool) -> None:
        self.folder = folder
        self.report = report
        self.steps, self.every = (FAST_STEPS, FAST_EVERY) if fast else (STEPS, EVERY)
        self.world = released.read().copy(folder / "base")
        self.data = lesson.write_clips(folder / "clips", folder / "cache", known=lesson.KNOWN)
        taught = lesson.prompts(FAST_PROMPTS if fast else PROMPTS)
        self.controls = lesson.controls(FAST_CONTROLS if fast else CONTROLS)
        others = [f"{scene.caption} --d {90 + i}" for i, scene in enumerate(self.controls)]
        self.lines = [*taught, *others]
        self.story = Story(lesson.TITLE)
        _write(folder / "prompts.txt", self.lines)
        _write(
            folder / "preview.txt",
            [
                f"{self.lines[0]} --w {shapes.SIDE} --h {shapes.SIDE} --f {shapes.FRAMES} "
                + " ".join(self._preview_words())
            ],
        )
        report.note(
            f"{lesson.CLIPS} clips of {lesson.TITLE}, {lesson.KNOWN} of what it knows, and a tiny base "
            f"are in {folder}."
        )

    @property
    def lora(self) -> Path:
        """The file that training ends with."""
        return self.folder / "out" / f"{lesson.NAME}.safetensors"

    def teach(self) -> None:
        """Every command, one after the other."""
        data = ["--dataset_config", self.data.as_posix()]
        self._musubi("cache latents", *data)
        self._musubi("cache text", *data)
        self._musubi("generate", *self._generation("before"))
        self._musubi("train", *data, *self._training())
        lora = ["--lora_weight", self.lora.as_posix()]
        self._musubi("generate", *self._generation("after"), *lora)
        merged = self.folder / "out" / "merged.safetensors"
        self._musubi("lora merge", *lora, "--save_merged_model", merged.as_posix())
        self._call(["lora", "info", self.lora.as_posix()])

    def show(self) -> None:
        """The contact sheet, the comparison, the page, and the detector's figures."""
        story, folder = self.story, self.folder
        before, after = self._made("before"), self._made("after")
        prompts = [line.partition(" --d ")[0] for line in self.lines]
        taught = len(self.lines) - len(self.controls)
        story.before, story.after, story.prompts = before[:taught], after[:taught], prompts[:taught]
        story.controls = list(zip(prompts[taught:], before[taught:], after[taught:], strict=True))
        story.kept = (
            lesson.kept(self.controls, before[taught:]),
            lesson.kept(self.controls, after[taught:]),
        )
        story.found = lesson.learned(story.before), lesson.learned(story.after)
        story.losses = _losses(folder / "out" / lesson.NAME / "metrics.jsonl")
        story.by_step = _samples(folder / "out" / "sample")
        pictures.contact_sheet(
            [clip for pair in zip(story.before, story.after, strict=True) for clip in pair],
            folder / "contact-sheet.png",
        )
        pictures.side_by_side(story.before, story.after, folder / "before-after.mp4")
        write_page(story, folder / "index.html")
        total, many = len(story.after), len(self.controls)
        self.report.table(
            "What a detector finds",
            ("clips of", "base", "with the LoRA"),
            [
                (lesson.TITLE, *(f"{n} of {total}" for n in story.found)),
                ("what their other words say", *(f"{n} of {many}" for n in story.kept)),
            ],
        )
        self.report.note(f"Look at {folder / 'index.html'}")
        self.report.note("Now with your own clips: musubi init FOLDER")

    def _training(self) -> list[str]:
        preview = (self.folder / "preview.txt").as_posix()
        return [
            *("--mixed_precision", "no", "--learning_rate", "7e-3", "--lr_scheduler", "cosine"),
            *("--network_dim", "16", "--network_alpha", "16"),
            *("--timestep_sampling", "shift", "--discrete_flow_shift", "3.0"),
            *("--max_train_steps", str(self.steps), "--seed", "1", "--log_with", "none"),
            *("--sample_prompts", preview, "--sample_at_first"),
            *("--sample_every_n_steps", str(self.every)),
            *("--output_dir", (self.folder / "out").as_posix(), "--output_name", lesson.NAME),
        ]

    def _generation(self, name: str) -> list[str]:
        side = str(shapes.SIDE)
        sampling = [(f"--{key}", str(value)) for key, value in self.world.sampling.items()]
        return [
            *("--from_file", (self.folder / "prompts.txt").as_posix()),
            *("--video_size", side, side, "--video_length", str(shapes.FRAMES)),
            *(word for pair in sampling for word in pair),
            *("--save_path", (self.folder / name).as_posix()),
        ]

    def _preview_words(self) -> list[str]:
        sampling = self.world.sampling
        return [
            *("--s", str(sampling["infer_steps"]), "--fs", str(sampling["flow_shift"])),
            *("--l", str(sampling["guidance_scale"])),
        ]

    def _made(self, name: str) -> list[np.ndarray]:
        place = self.folder / name
        seeds = [line.rpartition(" --d ")[2] for line in self.lines]
        found = [sorted(place.glob(f"*_{seed}.mp4")) for seed in seeds]
        return [pictures.read_clip(paths[-1]) for paths in found]

    def _musubi(self, command: str, *words: str) -> None:
        self._call([*command.split(), *self.world.flags(command), *words])

    def _call(self, words: Sequence[str]) -> None:
        self.story.commands.append(words)
        self.report.note(f"\n$ musubi {shlex.join(words)}")
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin steal the cores from one another
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        done = subprocess.run(
            [sys.executable, "-m", "musubi", *words], env=environment, check=False
        )
        if done.returncode:
            raise RunError(
                f"`musubi {words[0]}` ended with {done.returncode}, as it says above.",
                fix="Run the command that is shown above by itself, with --debug.",
            )


def _prepare(folder: Path, *, keep: bool) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise ConfigError(
            f"--out {folder} holds files that no demo made.", fix="Give a folder of its own."
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file.", fix="Give a folder of its own.")
    if folder.exists() and not keep:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def _losses(metrics: Path) -> list[float]:
    entries = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [entry["loss/current"] for entry in entries if "loss/current" in entry]


def _samples(folder: Path) -> dict[int, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*.mp4")):
        step = re.search(r"_(\d{6})_00_", path.name)
        if step:
            found[int(step[1])] = pictures.read_clip(path)
    return found


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
