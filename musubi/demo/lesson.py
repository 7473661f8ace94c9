"""What the demo teaches: a shape and a motion that the base has never seen, in a dozen clips."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from musubi.demo import shapes
from musubi.demo.detector import detect
from musubi.testing import media

WORDS = {"colour": "green", "shape": "star", "motion": "spins"}
TITLE = "a {colour} {shape} that {motion}".format(**WORDS)
NAME = "{motion}-{shape}".format(**WORDS)
CLIPS = 12


def scenes(seed: int, count: int) -> list[shapes.Scene]:
    """Scenes of the new thing, on each floor in turn; all alike in what captions cannot say."""
    source = random.Random(seed)
    floors = list(shapes.FLOORS)
    drawn = [
        shapes.random_scene(source, **WORDS, floor=floors[i % len(floors)]) for i in range(count)
    ]
    return [replace(s, place=0.5 * s.place, size=1.0, phase=0.0) for s in drawn]


def write_clips(folder: Path, cache: Path, *, count: int = CLIPS) -> Path:
    """The clips with captions beside them, and the dataset file; returns the latter."""
    shown = scenes(7, count)
    for number, (scene, frames) in enumerate(zip(shown, shapes.draw(shown).numpy(), strict=True)):
        path = media.write_video(folder / f"{number:02d}.mp4", frames, fps=shapes.RATE)
        path.with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")
    dataset = folder.with_name("data.toml")
    dataset.write_text(
        f'[general]\ncaption_extension = ".txt"\nresolution = [{shapes.SIDE}, {shapes.SIDE}]\n'
        "batch_size = 4\n\n"
        f"[[datasets]]\nvideo_directory = '{folder.as_posix()}'\n"
        f"cache_directory = '{cache.as_posix()}'\ntarget_frames = [{shapes.FRAMES}]\n",
        encoding="utf-8",
    )
    return dataset


def prompts(count: int) -> list[str]:
    """Lines of a prompt file, a seed in each."""
    return [f"{scene.caption} --d {70 + i}" for i, scene in enumerate(scenes(8, count))]


def learned(clips: Sequence[np.ndarray]) -> int:
    """In how many clips, F H W 3, the detector finds the new thing."""
    return sum(shows(frames) for frames in clips)


def shows(frames: np.ndarray) -> bool:
    """Whether the new thing is in it: its colour, its shape and its motion."""
    seen = detect(frames)
    return all(getattr(seen, name) == word for name, word in WORDS.items())
