"""Sections of a video on disk while it is made, and gone on from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from musubi.errors import CheckpointError
from musubi.generate import write
from musubi.generate.sections import KeptSections, pictures, unfinished
from musubi.plugin import Recipe


class Notes:
    """A report that keeps what it is told."""

    def __init__(self):
        self.notes, self.warnings = [], []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)


RECIPE = Recipe(
    prompt="a cat", negative_prompt="", width=48, height=32, frames=9, fps=16.0, seed=7, steps=2,
    solver="unipc", flow_shift=None, guidance_scale=1.0, options={"path": None, "sizes": (1, 2)},
)  # fmt: skip
FACTS = {"architecture": "toy", "files": {"dit": "dit.safetensors"}}


def shown(latents, recipe):
    return iter(np.zeros((4, recipe.height, recipe.width, 3), np.uint8))


def kept(folder, *, decode=shown, report=None, name="20260101-000000_7"):
    return KeptSections(RECIPE, name, folder, facts=FACTS, decode=decode, report=report or Notes())


def latents(number):
    return torch.full((1, 16, 2, 4, 6), float(number))


def two_of_three(folder, **more):
    watch = kept(folder, **more)
    for number in range(3):
        if number:
            watch.so_far(number, latents(0))
        assert watch.solved(number) is None
        watch.made(number, latents(number))
    return watch


def test_a_section_is_on_disk_before_the_next_is_made(tmp_path):
    report = Notes()
    watch = two_of_three(tmp_path, report=report)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "20260101-000000_7_section000.mp4",
        "20260101-000000_7_section000_latent.safetensors",
        "20260101-000000_7_section001.mp4",
        "20260101-000000_7_section001_latent.safetensors",
    ]
    assert watch.count == 2
    assert len(report.notes) == 2
    again = kept(tmp_path)
    assert torch.equal(again.solved(1), latents(1))
    assert again.solved(2) is None
    watch.clear()
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_of_a_video_of_one_section(tmp_path):
    kept(tmp_path).made(0, latents(0))
    assert not list(tmp_path.iterdir())


def test_without_videos_latents_are_kept(tmp_path):
    two_of_three(tmp_path, decode=None)
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors"}


def test_a_card_too_small_to_decode_beside_the_denoiser_keeps_latents(tmp_path):
    def full(latents, recipe):
        raise torch.OutOfMemoryError("full")
        yield

    report = Notes()
    two_of_three(tmp_path, decode=full, report=report)
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors"}
    assert len(report.warnings) == 1


def test_the_unfinished_video_of_the_same_recipe_is_found(tmp_path):
    two_of_three(tmp_path)
    asked = replace(RECIPE, seed=99)
    assert unfinished(tmp_path, asked, FACTS, any_seed=True) == ("20260101-000000_7", RECIPE)
    assert unfinished(tmp_path, RECIPE, FACTS, any_seed=False) == ("20260101-000000_7", RECIPE)
    assert unfinished(tmp_path, asked, FACTS, any_seed=False) is None
    for other in ({"prompt": "a dog"}, {"steps": 3}, {"options": {}}):
        assert unfinished(tmp_path, replace(RECIPE, **other), FACTS, any_seed=True) is None
    assert unfinished(tmp_path, RECIPE, {"architecture": "other"}, any_seed=True) is None
    assert unfinished(tmp_path / "nowhere", RECIPE, FACTS, any_seed=True) is None


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\xff" * 64])
def test_a_damaged_section_is_made_again(tmp_path, damage):
    two_of_three(tmp_path)
    path = tmp_path / "20260101-000000_7_section001_latent.safetensors"
    path.write_bytes(damage)
    with pytest.raises(CheckpointError):
        write.read_latents(path)
    report = Notes()
    watch = kept(tmp_path, report=report)
    assert torch.equal(watch.solved(0), latents(0))
    assert watch.solved(1) is None
    assert "made again" in report.warnings[0]
    first = tmp_path / "20260101-000000_7_section000_latent.safetensors"
    first.write_bytes(damage)
    assert unfinished(tmp_path, RECIPE, FACTS, any_seed=True) is None


def test_pictures_come_one_by_one():
    chunks = [np.zeros((2, 4, 6, 3)), np.ones((1, 4, 6, 3))]
    assert [int(p.mean()) for p in pictures(chunks)] == [0, 0, 1]
