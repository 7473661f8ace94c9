"""Finds finished videos in a folder, so that `--continue` does not make them again.

The metadata of a file holds its recipe; a file without metadata is not recognised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import av
from av.error import FFmpegError
from PIL import Image

from musubi.errors import MusubiError
from musubi.generate import write
from musubi.plugin import Recipe
from musubi.untrusted import TextError, parse_json
from musubi.weights.files import open_weights

LATENTS = "_latent.safetensors"
SECTION = "_section"

Kind = Literal["latent", "video", "images"]


def same(stored: Mapping[str, Any], recipe: Recipe, facts: Mapping[str, Any]) -> bool:
    """Whether a stored recipe equals this one, apart from the seed."""
    wanted = json.loads(json.dumps({**asdict(recipe), **facts}, ensure_ascii=False, default=str))
    return {**stored, "seed": 0} == {**wanted, "seed": 0}


@dataclass(frozen=True)
class FinishedVideo:
    """The files of a video whose denoising is done.

    Args:
        name: The stem of its files.
        recipe: The recipe it was made with, including the seed.
        files: The files that exist.
    """

    name: str
    recipe: Recipe
    files: frozenset[Kind]

    def complete(self, output: str) -> bool:
        """Whether all files of an output type exist.

        Images beside latents do not count: all of them may not have been written.
        """
        if output == "images":
            return self.files == {"images"}
        whole = {"video": {"video"}, "latent": {"latent"}, "both": {"latent", "video"}}
        return output in whole and self.files >= whole[output]

    @property
    def denoised(self) -> bool:
        """Whether the latents exist, so that only decoding is left."""
        return "latent" in self.files


@dataclass
class _Entry:
    recipe: Mapping[str, Any]
    files: set[Kind] = field(default_factory=set)


class FinishedVideos:
    """The finished videos of a folder; `take` returns each one only once.

    Args:
        folder: Where to look.
    """

    def __init__(self, folder: Path) -> None:
        self._entries: dict[str, _Entry] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if SECTION not in path.name:
                self._look(path)

    def take(
        self, recipe: Recipe, facts: Mapping[str, Any], output: str, *, any_seed: bool
    ) -> FinishedVideo | None:
        """A video of this recipe that is complete, or whose latents exist.

        Args:
            recipe: The requested recipe.
            facts: What else decides the result.
            output: The output type.
            any_seed: The user gave no seed, so a video with any seed fits.
        """
        for name, entry in self._entries.items():
            seed = entry.recipe.get("seed")
            if not isinstance(seed, int) or not (any_seed or seed == recipe.seed):
                continue
            found = FinishedVideo(name, replace(recipe, seed=seed), frozenset(entry.files))
            if not (found.complete(output) or found.denoised):
                continue
            if same(entry.recipe, recipe, facts):
                del self._entries[name]
                return found
        return None

    def _look(self, path: Path) -> None:
        kind: Kind
        if path.name.endswith(LATENTS):
            kind, name = "latent", path.name.removesuffix(LATENTS)
        elif path.suffix == ".mp4":
            kind, name = "video", path.stem
        elif path.is_dir() or path.name.endswith("_000.png"):
            kind, name = "images", path.name.removesuffix("_000.png")
        else:
            return
        with suppress(MusubiError, TextError, OSError, FFmpegError):  # then it is none of ours
            recipe = parse_json(_told(path, kind))
            if isinstance(recipe, dict):
                self._entries.setdefault(name, _Entry(recipe)).files.add(kind)


def _told(path: Path, kind: Kind) -> str:
    """The recipe that a file carries, as text; empty without one."""
    if kind == "latent":
        with open_weights(path) as weights:
            return weights.metadata.get(write.RECIPE, "")
    if kind == "video":
        with av.open(str(path)) as container:
            return container.metadata.get("comment", "")
    first = path / f"{path.name}_000.png" if path.is_dir() else path
    with Image.open(first) as picture:
        return str(picture.info.get(write.RECIPE, ""))
