"""The three files: the dataset, the training, the prompts; each line with a word on why."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from musubi.config.init import Goal
from musubi.config.task import Choice
from musubi.init.clips import Folder, middle
from musubi.init.size import FittingSize
from musubi.plugin import Architecture

STEPS = {"person": 1600, "object": 1600, "style": 2400, "motion": 2000}
"""For about twenty clips; more clips want more, up to twice as many."""
WHY = {
    "person": "a likeness is learned early and overdone soon: compare the checkpoints",
    "object": "an object is learned early and overdone soon: compare the checkpoints",
    "style": "a style takes longer, and forgives more",
    "motion": "a motion takes longer, and wants clips of its whole length",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is written.

    Args:
        folder: The clips.
        architecture: That is trained.
        choice: The task and variant.
        goal: What the LoRA is for.
        size: Resolution and frames.
        vram: Of the card; None when nothing is known.
        name: Of the LoRA.
        models: Option → path, for files that were found.
        look_in: Folder in which the others are looked for; None where a variable or the settings say.
    """

    folder: Folder
    architecture: Architecture
    choice: Choice
    goal: Goal
    size: FittingSize
    vram: str | None
    name: str
    models: dict[str, str]
    look_in: str | None = None

    @property
    def task(self) -> str:
        """The variant where one is meant."""
        return self.choice.variant.name if self.choice.variant else self.choice.task.name

    @property
    def lengths(self) -> list[int]:
        """Frames that clips are cut to: the longest, and a shorter one where many clips are shorter."""
        every = self.choice.task.shape.period
        most = self.size.frames
        rate = self.choice.task.shape.frame_rate
        half = max(1, (most // 2) // every * every + 1)
        short = sum(f.seconds * rate < most for f in self.folder.videos)
        return sorted({most, half} if short and most > 1 else {most})

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        more = min(max(len(self.folder.files) / 20, 0.75), 2)
        return round(STEPS[self.goal] * more / 100) * 100


def data_toml(plan: Plan) -> str:
    """The dataset file."""
    size, folder = plan.size, plan.folder
    rate = plan.choice.task.shape.frame_rate
    lines = [
        f"# {_count(folder)}. `musubi cache preview --mode html` shows them as they are trained.",
        "",
        "[general]",
        f"resolution = [{size.width}, {size.height}]  # an area: with buckets, clips keep their shape",
        f"caption_extension = {_text(folder.ending)}",
        "batch_size = 1",
        "enable_bucket = true",
        "bucket_no_upscale = true  # small pictures are not blown up",
    ]
    if folder.videos:
        lines += [
            "",
            "[[datasets]]",
            f"video_directory = {_path(folder.path)}",
            f"cache_directory = {_path(folder.path / 'cache')}",
            f"target_frames = {plan.lengths}  # {size.frames} frames are "
            f"{size.frames / rate:.1f} s at the model's {rate:g} a second",
            'frame_extraction = "head"  # the beginning of each clip; "uniform" takes several parts',
        ]
    if folder.images:
        lines += [
            "",
            "[[datasets]]",
            f"image_directory = {_path(folder.path)}",
            f"cache_directory = {_path(folder.path / 'cache_images')}",
        ]
    return "\n".join(lines) + "\n"


def train_toml(plan: Plan, data: Path, prompts: Path) -> str:
    """The settings of the run."""
    usual = plan.choice.sampling.flow_shift
    shift = 3.0 if usual is None or usual <= 5 else usual
    if plan.goal == "motion":
        shift += 2.0
    every = max(100, round(plan.steps / 800) * 100)
    rows: list[tuple[str, str, str]] = [
        ("arch", _text(plan.architecture.name), ""),
        ("task", _text(plan.task), ""),
        ("dataset_config", _path(data), ""),
        *((name, _path(Path(path)), "") for name, path in plan.models.items()),
    ]
    if plan.look_in is not None:
        rows.append(
            ("models", _text(plan.look_in), "model files are found here by what is in them")
        )
    if plan.vram is not None:
        rows.append(
            ("vram", _text(plan.vram), "the fastest settings that fit are found at the start")
        )
    rows += [
        ("mixed_precision", '"bf16"', ""),
        ("optimizer_type", '"adamw8bit"', "a quarter of the memory of adamw"),
        ("learning_rate", "2e-4", "halve it when samples break or the loss jumps"),
        ("network_dim", "32", "the rank: how much can be learned, and the size of the file"),
        ("network_alpha", "16", "the change is scaled by alpha / rank"),
        ("timestep_sampling", '"shift"', ""),
        ("discrete_flow_shift", f"{shift:g}", "higher: more noise, where motion is decided; lower: detail"),
        ("max_train_steps", str(plan.steps), WHY[plan.goal]),
        ("save_every_n_steps", str(every), ""),
        ("save_state", "true", "so that --resume auto goes on after a stop"),
        ("sample_prompts", _path(prompts), ""),
        ("sample_every_n_steps", str(every), ""),
        ("sample_at_first", "true", "to compare with what the model knew before"),
        ("output_dir", '"out"', ""),
        ("output_name", _text(plan.name), ""),
    ]  # fmt: skip
    wide = max(len(f"{key} = {value}") for key, value, why in rows if why)
    lines = [
        f"{f'{key} = {value}':<{wide}}  # {why}" if why else f"{key} = {value}"
        for key, value, why in rows
    ]
    head = f"# {plan.architecture.title} {plan.task}, a LoRA of {_article(plan.goal)}."
    return "\n".join([head, *lines]) + "\n"


def prompts_txt(plan: Plan) -> str:
    """Two captions of the data as prompts, and one of something else, to see what else changes."""
    captions = [" ".join(f.caption.split()) for f in plan.folder.files if f.caption]
    shown = list(dict.fromkeys(captions))[:2] or ["describe here what the LoRA should show"]
    control = "a street in the rain, seen from a window"
    size = plan.size
    words = f"--w {size.width} --h {size.height} --f {size.frames}"
    lines = [
        f"{_one_line(text)} {words} --d {seed}" for seed, text in enumerate([*shown, control], 1)
    ]
    note = "# One prompt a line. The last one names nothing of the clips: it should stay as it was."
    return "\n".join([note, *lines]) + "\n"


def _one_line(text: str) -> str:
    """A caption without what a prompt line would read as an option."""
    return re.sub(r"\s--", " - ", text)[:400]


def _count(folder: Folder) -> str:
    parts = [f"{len(group)} {kind}{'s' if len(group) > 1 else ''}" for kind, group in (("clip", folder.videos), ("picture", folder.images)) if group]  # fmt: skip
    seconds = middle([f.seconds for f in folder.videos])
    return " and ".join(parts) + (f", most of about {seconds:.1f} s" if seconds else "")


def _article(goal: Goal) -> str:
    return f"{'an' if goal[0] in 'aeiou' else 'a'} {goal}"


def _path(path: Path) -> str:
    return _text(path.as_posix())


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
