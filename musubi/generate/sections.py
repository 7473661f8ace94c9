"""Videos that are made in sections: each section is saved as soon as it is made, so that the video
can be continued.

Beside the video to come, `{name}_section000.mp4` shows the first section that was made, and
`{name}_section000_latent.safetensors` holds its latents and the whole recipe. Once the whole video is
on disk they are deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musubi import stopping
from musubi.errors import MusubiError
from musubi.generate import write
from musubi.generate.finished import LATENTS as _LATENTS
from musubi.generate.finished import SECTION as _MARK
from musubi.generate.finished import same
from musubi.generate.pipeline import SectionWatch
from musubi.plugin import Recipe, Report

Decode = Callable[[torch.Tensor, Recipe], Iterable[np.ndarray]]
"""`(latents, recipe) -> pictures`, each uint8 H W 3."""


class KeptSections(SectionWatch):
    """Sections on disk while the video is made.

    For a video of only one section nothing is written.

    Args:
        recipe: What is made.
        name: The stem of its files.
        folder: Where they are.
        facts: What else decides the result; stored with each section.
        decode: Makes pictures of a section; None: no videos of sections are written.
        report: Shows each file.
    """

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        decode: Decode | None,
        report: Report,
    ) -> None:
        self.recipe, self.name = recipe, name
        self._folder, self._facts, self._decode, self._report = folder, facts, decode, report
        self._latest: tuple[int, torch.Tensor] | None = None
        self.count = 0

    def solved(self, number: int) -> torch.Tensor | None:
        path = self._path(number, _LATENTS)
        if not path.is_file():
            return None
        try:
            found = write.read_latents(path).latents
        except MusubiError as error:
            self._report.warn(f"{error} The section is made again.")
            return None
        self._report.note(f"Section {number} is there already: {path}.")
        self.count = max(self.count, number + 1)
        return found

    def made(self, number: int, latents: torch.Tensor) -> None:
        self._latest = number, latents

    def so_far(self, number: int, latents: torch.Tensor) -> None:
        if self._latest is None:
            return
        made, x = self._latest
        self._latest = None
        notes = write.metadata(self.recipe, **self._facts)
        write.write_latents(x, self._path(made, _LATENTS), notes)
        self.count = made + 1
        _go_on()
        if self._decode is None:
            return
        try:
            shown = write.write_video(
                self._decode(x, self.recipe), self._path(made, ".mp4"), self.recipe.fps
            )
            self._report.note(f"Wrote {shown}.")
        except torch.OutOfMemoryError:
            self._decode = None
            torch.cuda.empty_cache()
            self._report.warn(
                "There is no memory to decode a section beside the denoiser: sections are kept as "
                "latents, and decoded when all are made."
            )

    def clear(self) -> None:
        """Delete the sections when the whole video is on disk."""
        for path in self._folder.glob(f"{self.name}{_MARK}[0-9][0-9][0-9]*"):
            path.unlink()

    def _path(self, number: int, ending: str) -> Path:
        return self._folder / f"{self.name}{_MARK}{number:03d}{ending}"


def unfinished(
    folder: Path, recipe: Recipe, facts: Mapping[str, Any], *, any_seed: bool
) -> tuple[str, Recipe] | None:
    """The name and the recipe of an unfinished video; the latest if there are several.

    Args:
        folder: Where to look.
        recipe: The requested recipe; only a video of the same recipe is continued.
        facts: What else decides the result.
        any_seed: The user gave no seed; the seed of the unfinished video is used.
    """
    for path in sorted(folder.glob(f"*{_MARK}000{_LATENTS}"), reverse=True):
        try:
            stored = write.read_latents(path).recipe
        except MusubiError:
            continue
        seed = stored.get("seed")
        if not isinstance(seed, int) or (not any_seed and seed != recipe.seed):
            continue
        if same(stored, recipe, facts):
            name = path.name.removesuffix(f"{_MARK}000{_LATENTS}")
            return name, replace(recipe, seed=seed)
    return None


def pictures(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The pictures of chunks, uint8 F H W 3, one by one."""
    for chunk in chunks:
        yield from chunk


def _go_on() -> None:
    """When there are sections to continue from, show the command with `--continue`."""
    line = stopping.way_on()
    if line is not None and "--continue" not in line.split():
        stopping.go_on_with(f"{line} --continue")
