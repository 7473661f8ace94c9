"""What a file or a person may ask for without end: pipes, links in a circle, numbers without bounds."""

from __future__ import annotations

import json
import os

import pytest
from conftest import honest


@pytest.fixture
def world(finished, tmp_path):
    return finished.copy(tmp_path / "world")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("name", ["red.txt", "new.png"])
def test_a_pipe_is_left_out_by_name(ask, world, name):
    path = world.folder / "images" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    found = ask(world.words("cache text"))
    honest(found)
    assert found["code"] == 0 and name in found["said"] and "a pipe or a device" in found["said"]


def test_a_link_in_a_circle_is_left_out_and_the_rest_is_not(ask, world):
    images = world.folder / "images"
    try:
        (images / "loop.png").symlink_to(images / "loop.png")
    except OSError:
        pytest.skip("this system makes no links")
    found = ask(world.words("cache latents"))
    honest(found)
    assert found["code"] == 0 and "2 fresh" in found["said"].replace("3 fresh", "2 fresh")
    assert "loop.png cannot be read: its symbolic links lead in a circle" in found["said"]


@pytest.mark.parametrize(
    "keys",
    [
        'frame_extraction = "uniform"\nframe_sample = 2000000000',
        'frame_extraction = "slide"\nframe_stride = 2000000000',
        "num_repeats = 1000000000000",
        "source_fps = 1e-300",
        f"num_repeats = {'9' * 5000}",
        f"num_repeats = {'[' * 20_000}",
    ],
)
def test_numbers_without_bounds_in_a_dataset(ask, world, keys):
    world.data.write_text(world.data.read_text("utf-8") + keys + "\n", encoding="utf-8")
    honest(ask(world.words("cache check")))


@pytest.mark.parametrize(
    "option",
    [
        ("--output_name", ".."), ("--output_name", "CON"), ("--output_name", "a/b"),
        ("--sigmoid_scale", "inf"), ("--seed", str(2**63)), ("--seed", "9" * 5000),
        ("--learning_rate", "nan"), ("--network_dim", "0"), ("--training_comment", "\udcff"),
    ],
    ids=lambda o: f"{o[0]} {o[1][:8]!r}",
)  # fmt: skip
def test_options_that_cannot_be_meant(ask, world, option):
    found = ask(world.words("train", *option))
    honest(found)
    assert found["code"] == 2 and option[0] in found["said"], found["said"]


@pytest.mark.parametrize(
    "entry",
    [
        {"seed": 2**63}, {"seed": -1}, {"steps": 10**9}, {"width": 10**9}, {"frames": 4 * 10**9 + 1},
        {"flow_shift": float("nan")}, {"guidance_scale": float("inf")}, {"prompt": "a\ud800"},
    ],
    ids=lambda e: next(iter(e)),
)  # fmt: skip
def test_prompts_that_ask_for_too_much(ask, world, entry):
    path = world.folder / "prompts.json"
    path.write_text(json.dumps([{"prompt": "a", **entry}]), encoding="utf-8")
    found = ask(world.words("generate", "--from_file", path))
    honest(found)
    assert found["code"] == 2, found["said"]
