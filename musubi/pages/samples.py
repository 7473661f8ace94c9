"""Samples of a run by prompt and step: found by their names, told apart by what is written in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError
from PIL import Image

from musubi.generate.write import RECIPE
from musubi.untrusted import parse_json

Show = Callable[[Path], "Mapping[str, Any] | None"]
"""A file → {"src", "kind"} and what else the page needs to show it; None where it cannot be shown."""

VIDEOS, IMAGES = {".mp4"}, {".png", ".webp", ".jpg"}
_MOMENT = r"_(?P<epoch>e)?(?P<moment>\d{6,})_(?P<prompt>\d{2,})_\d{14}(?:_\d+)?(?:_000)?"


@dataclass(frozen=True)
class Sample:
    """One file.

    Args:
        path: The file.
        prompt: Number of its prompt.
        step: After which it was drawn; None when only the epoch is known.
        epoch: The epoch, when it was drawn at the end of one.
    """

    path: Path
    prompt: int
    step: int | None
    epoch: int | None


@dataclass(frozen=True)
class Samples:
    """All samples of a run."""

    found: list[Sample] = field(default_factory=list[Sample])

    def table(self, show: Show, last_step: Mapping[int, int]) -> dict[str, Any] | None:
        """Prompts, moments, and the sample of each: {"prompts", "moments", "cells"}.

        Args:
            show: Gives the address of a file.
            last_step: Epoch → its last step.
        """
        if not self.found:
            return None
        placed: dict[tuple[int, int], Sample] = {}
        for one in self.found:
            step = one.step if one.step is not None else last_step.get(one.epoch or 0)
            if step is not None:
                placed[one.prompt, step] = one  # the later file of a step that was made twice
        moments = sorted({step for _, step in placed})
        prompts = sorted({prompt for prompt, _ in placed})
        # The newest first: a page that cannot hold all of them holds these.
        made = {
            (prompt, step): show(placed[prompt, step].path)
            for step in reversed(moments)
            for prompt in prompts
            if (prompt, step) in placed
        }
        cells = [[made.get((prompt, step)) for step in moments] for prompt in prompts]
        recipes = [
            recipe(next(one.path for (p, _), one in sorted(placed.items()) if p == prompt))
            for prompt in prompts
        ]
        return {"prompts": [_words(r, n) for r, n in zip(recipes, prompts, strict=True)],
                "moments": moments, "cells": cells}  # fmt: skip


def find(folder: Path, name: str) -> Samples:
    """The samples of the run `name` in a folder."""
    pattern = re.compile(re.escape(name) + _MOMENT)
    found: list[Sample] = []
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in paths:
        match = pattern.fullmatch(path.stem)
        if match and path.suffix.lower() in VIDEOS | IMAGES:
            moment = int(match["moment"])
            step, epoch = (None, moment) if match["epoch"] else (moment, None)
            found.append(Sample(path, int(match["prompt"]), step, epoch))
    return Samples(found)


def recipe(path: Path) -> dict[str, Any]:
    """The recipe in the metadata of a video or an image; empty if there is none."""
    try:
        if path.suffix.lower() in VIDEOS:
            with av.open(str(path)) as container:
                text = container.metadata.get("comment", "")
        else:
            with Image.open(path) as image:
                text = str(image.info.get(RECIPE, ""))
        read = parse_json(text)
    except (OSError, ValueError, FFmpegError):
        return {}
    return read if isinstance(read, dict) else {}


def _words(found: Mapping[str, Any], number: int) -> dict[str, Any]:
    keys = ("prompt", "seed", "width", "height", "frames", "steps")
    return {"number": number, **{key: found[key] for key in keys if key in found}}
