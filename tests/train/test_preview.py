"""Previews: what they are called, that they may fail, what they are made of."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from musubi.config.task import Choice
from musubi.errors import ConfigError, RunError
from musubi.plugin import Quiet
from musubi.train.preview import Gallery, read_prompts


class FakePipeline:
    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def latents(self, recipe) -> SimpleNamespace:
        if recipe.prompt == self.broken:
            raise torch.OutOfMemoryError("too big")
        return SimpleNamespace(frames=recipe.frames)

    def frames(self, latents, recipe):
        yield np.zeros((latents.frames, 16, 16, 3), np.uint8)


def prompts_of(toy, text: str, seed: int = 1) -> list:
    path = toy.folder / "p.txt"
    path.write_text(text, encoding="utf-8")
    choice = Choice(toy.architecture.tasks[0])
    return read_prompts(path, toy.architecture, choice, {}, seed=seed, report=Quiet())


def test_prompts_get_a_seed_that_stays(toy) -> None:
    text = "a cat --w 70 --h 33 --f 6 --d 7\n# no\na dog\n"
    cat, dog = prompts_of(toy, text)
    assert (cat.recipe.width, cat.recipe.height, cat.recipe.frames) == (64, 32, 5)
    assert cat.recipe.seed == 7 and cat.seeded and not dog.seeded
    assert (dog.recipe.width, dog.recipe.frames, dog.recipe.steps) == (256, 1, 20)
    assert dog.recipe.seed == prompts_of(toy, text)[1].recipe.seed
    assert dog.recipe.seed != prompts_of(toy, text, seed=2)[1].recipe.seed
    assert dog.recipe.fps == toy.architecture.geometry.frame_rate


def test_names_and_failures(toy, tmp_path: Path) -> None:
    report = Quiet()
    gallery = Gallery(
        FakePipeline(broken="a cow"),
        prompts_of(toy, "a cat --f 5 --d 7\na cow\na dog\n"),
        tmp_path / "sample",
        "cat",
        facts={"task": "t2v"},
        report=report,
    )
    gallery.draw(step=3, epoch=None)
    gallery.draw(step=4, epoch=2)
    names = sorted(p.name for p in (tmp_path / "sample").iterdir())
    parts = [name.rsplit("_", 2) for name in names]
    assert [p[0] for p in parts] == [
        "cat_000003_00",
        "cat_000003_02",
        "cat_e000002_00",
        "cat_e000002_02",
    ]
    assert names[0].endswith("_7.mp4") and names[1].endswith("_000.png")
    assert all("a cow" in warning and "Training goes on" in warning for warning in report.warnings)
    assert len(report.warnings) == 2


def test_a_full_device_is_told_in_the_words_of_the_plan(toy, tmp_path: Path) -> None:
    asked = []

    @contextmanager
    def explained(where, recipe):
        asked.append((where, recipe.prompt))
        try:
            yield
        except torch.OutOfMemoryError:
            raise RunError("The memory is full.", fix="Add --blocks_to_swap 3.") from None

    report = Quiet()
    prompts = prompts_of(toy, "a cow\na dog\n")
    pipeline = FakePipeline(broken="a cow")
    folder = tmp_path / "sample"
    Gallery(pipeline, prompts, folder, "cat", facts={}, report=report, explained=explained).draw(
        step=3, epoch=None
    )
    assert asked == [("sample", "a cow"), ("sample", "a dog"), ("decode", "a dog")]
    (warning,) = report.warnings
    assert "Add --blocks_to_swap 3. Training goes on." in warning


def test_files_for_previews_are_asked_for_before_training(toy) -> None:
    (toy.folder / "p.txt").write_text("a cat --z 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="--z"):
        toy.train(full=True, sample_prompts=str(toy.folder / "p.txt"))
