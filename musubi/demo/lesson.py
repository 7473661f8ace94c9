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
KNOWN = 8
"""Clips of what the base knows, beside those of the new thing: without them every shape becomes a star."""


def scenes(seed: int, count: int) -> list[shapes.Scene]:
    """Scenes of the new thing, on each floor in turn; all alike in what captions cannot say."""
    source = random.Random(seed)
    floors = list(shapes.FLOORS)
    drawn = [
        shapes.random_scene(source, **WORDS, floor=floors[i % len(floors)]) for i in range(count)
    ]
    return [replace(s, place=0.5 * s.place, size=1.0, phase=0.0) for s in drawn]


def ordinary(seed: int, count: int) -> list[shapes.Scene]:
    """Scenes of what the base knows; every shape, colour and floor occurs before one comes again."""
    source = random.Random(seed)
    colours = [c for c in shapes.COLOURS if c != WORDS["colour"]]
    floors, motions = list(shapes.FLOORS), list(shapes.MOTIONS)
    return [
        shapes.random_scene(
            source,
            colour=colours[i % len(colours)],
            shape=shapes.SHAPES[i % len(shapes.SHAPES)],
            motion=motions[(i + seed) % len(motions)],
            floor=floors[(i + seed // 2) % len(floors)],
        )
        for i in range(count)
    ]


def write_clips(folder: Path, cache: Path, *, count: int = CLIPS, known: int = 0) -> Path:
    """The clips with captions beside them, and the dataset file; returns the latter.

    Args:
        folder: For the clips; those of known things lie in a folder beside it.
        cache: For their records.
        count: Clips of the new thing.
        known: Clips of what the base knows.
    """
    shown = [*scenes(7, count), *ordinary(5, known)]
    beside = folder.with_name("known")
    for number, (scene, frames) in enumerate(zip(shown, shapes.draw(shown).numpy(), strict=True)):
        home = folder if number < count else beside
        path = media.write_video(home / f"{number:02d}.mp4", frames, fps=shapes.RATE)
        path.with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")
    dataset = folder.with_name("data.toml")
    dataset.write_text(
        f'[general]\ncaption_extension = ".txt"\nresolution = [{shapes.SIDE}, {shapes.SIDE}]\n'
        "batch_size = 4\n\n"
        f"[[datasets]]\nvideo_directory = '{folder.as_posix()}'\n"
        f"cache_directory = '{cache.as_posix()}'\ntarget_frames = [{shapes.FRAMES}]\n"
        + (
            f"\n[[datasets]]\nvideo_directory = '{beside.as_posix()}'\n"
            f"cache_directory = '{(cache / 'known').as_posix()}'\ntarget_frames = [{shapes.FRAMES}]\n"
            if known
            else ""
        ),
        encoding="utf-8",
    )
    return dataset


def prompts(count: int) -> list[str]:
    """Lines of a prompt file, a seed in each."""
    return [f"{scene.caption} --d {70 + i}" for i, scene in enumerate(scenes(8, count))]


def controls(count: int) -> list[shapes.Scene]:
    """Scenes of known things that were not trained on, to see whether their words still mean them."""
    return ordinary(12, count)


def kept(scenes: Sequence[shapes.Scene], clips: Sequence[np.ndarray]) -> int:
    """How many clips, F H W 3, show the colour, the motion and, in every frame, the shape of their scenes."""
    right = 0
    for scene, frames in zip(scenes, clips, strict=True):
        seen = detect(frames)
        words = (seen.colour, seen.shape, seen.motion)
        right += seen.whole and words == (scene.colour, scene.shape, scene.motion)
    return right


def learned(clips: Sequence[np.ndarray]) -> int:
    """In how many clips, F H W 3, the detector finds the new thing."""
    return sum(shows(frames) for frames in clips)


def shows(frames: np.ndarray) -> bool:
    """Whether the new thing is in it: its colour, its motion and, in every frame, its shape."""
    seen = detect(frames)
    return seen.whole and all(getattr(seen, name) == word for name, word in WORDS.items())
