import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import toy_cache

from musubi.cache import encode
from musubi.cache.match import open_training_set
from musubi.config.dataset import read_dataset_config
from musubi.plugin import Quiet
from musubi.testing import media

SIZE = (64, 48)


class World(NamedTuple):
    """A dataset of two images and two videos, and the encoders' files."""

    folder: Path
    data: Path
    weights: dict[str, Path]
    report: Quiet

    @property
    def caches(self) -> list[Path]:
        return [self.folder / "image_cache", self.folder / "video_cache"]

    def records(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for cache in self.caches
            for path in sorted(cache.glob("*.safetensors"))
        }

    def latents(self, **more):
        toy_cache.Runtime.calls.clear()
        options = toy_cache.config("latents", self.data, {**self.weights}, **more)
        return encode.cache_latents(options, toy_cache.ARCHITECTURE, self.report)

    def text(self, **more):
        toy_cache.Runtime.calls.clear()
        options = toy_cache.config("text", self.data, {**self.weights}, **more)
        return encode.cache_text(options, toy_cache.ARCHITECTURE, self.report)

    def open(self, task: str = "t2v", **more):
        return open_training_set(
            read_dataset_config(self.data, toy_cache.ARCHITECTURE, toy_cache.ARCHITECTURE.tasks[0]),
            toy_cache.ARCHITECTURE,
            toy_cache.ARCHITECTURE.task(task),
            report=self.report,
            **more,
        )

    def change(self, old: str, new: str) -> None:
        """Edit the dataset file."""
        text = self.data.read_text(encoding="utf-8")
        assert old in text
        self.data.write_text(text.replace(old, new), encoding="utf-8")

    def encoded(self) -> list[str]:
        """What the runtime encoded since the last command, in one list."""
        return sorted(name for _, names in toy_cache.Runtime.calls for name in names)


@pytest.fixture(scope="session")
def untouched(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untouched")
    media.write_dataset(folder, width=SIZE[0], height=SIZE[1], frames=9)
    toy_cache.write_weights(folder / "weights")
    return folder


@pytest.fixture
def world(untouched, tmp_path) -> World:
    folder = tmp_path / "data"
    shutil.copytree(untouched, folder)
    data = folder / "data.toml"
    text = data.read_text(encoding="utf-8")
    data.write_text(text.replace(untouched.as_posix(), folder.as_posix()), encoding="utf-8")
    weights = {n: folder / "weights" / f"{n}-0.safetensors" for n in ("vae", "words", "glyphs")}
    return World(folder, data, weights, Quiet())


@pytest.fixture
def cached(world) -> World:
    world.latents()
    world.text()
    return world


@pytest.fixture
def paint() -> Callable[[Path], Path]:
    """Write an image of one colour, whose toy latents are not finite."""

    def write(path: Path) -> Path:
        return media.write_image(path, np.full((SIZE[1], SIZE[0], 3), 7, np.uint8))

    return write
