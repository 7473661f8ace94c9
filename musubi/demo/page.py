"""`index.html`: the verdict, the clips before and after, the samples by step, and what was typed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from musubi.demo import shapes
from musubi.pages import columns, curves, document, pictures


@dataclass
class Story:
    """What happened.

    Args:
        title: What was taught.
        commands: As typed, in order, without the program's name.
        losses: Of each step.
        by_step: Step → the clip drawn then.
        before: Clips of the base.
        after: Clips with the LoRA, of the same prompts and seeds.
        prompts: Of those clips.
        found: How many of `before`, and of `after`, show what was taught.
        controls: Clips of known things: (prompt, before, after).
        kept: How many of these show what their words say, before and after.
    """

    title: str
    commands: list[Sequence[str]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    by_step: Mapping[int, np.ndarray] = field(default_factory=dict)
    before: Sequence[np.ndarray] = ()
    after: Sequence[np.ndarray] = ()
    prompts: Sequence[str] = ()
    found: tuple[int, int] = (0, 0)
    controls: Sequence[tuple[str, np.ndarray, np.ndarray]] = ()
    kept: tuple[int, int] = (0, 0)


def write_page(story: Story, path: Path) -> None:
    """Write the page; everything is inside it."""
    document.write(path, "musubi demo", data(story))


def data(story: Story) -> dict[str, Any]:
    """What the page shows."""
    pairs = list(zip(story.prompts, story.before, story.after, strict=True))
    entries = [{"step": step, columns.LOSS.key: loss} for step, loss in enumerate(story.losses, 1)]
    found = curves.series(entries)
    many = len(story.controls)
    return {
        "view": "demo",
        "title": story.title,
        "about": "A checkpoint of 15 MB, twelve clips of something that it had never seen, a minute of "
        "training on a processor. A detector looks at the pixels and counts.",
        "found": [*story.found, len(story.after)],
        "pairs": [_pair(*pair) for pair in pairs],
        "controls": [_pair(*pair) for pair in story.controls],
        "control": {
            "title": "Other words still mean what they meant",
            "value": f"{story.kept[1]} of {many}",
            "about": f"{story.kept[0]} of {many} before",
        }
        if many
        else None,
        "by_step": [
            {"step": step, "media": _media(frames)}
            for step, frames in sorted(story.by_step.items())
        ],
        "loss": found[0] if found else None,
        "commands": [
            {"title": " ".join(_words(words)), "text": f"musubi {shlex.join(words)}"}
            for words in story.commands
        ],
        "next": "musubi init FOLDER_OF_CLIPS",
    }


def _words(command: Sequence[str]) -> list[str]:
    """The command itself, without its options."""
    bare = [word for word in command[:2] if not word.startswith("-")]
    return bare[:2] if bare[0] in ("cache", "lora") else bare[:1]


def _pair(prompt: str, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    return {"prompt": prompt, "before": _media(before), "after": _media(after)}


def _media(frames: np.ndarray) -> dict[str, Any]:
    address = pictures.video_address(pictures.clip(frames, shapes.RATE))
    return {"src": address, "kind": "video", "pixel": True}
