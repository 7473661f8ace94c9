"""`musubi plan` as it is typed."""

import json

import pytest

pytestmark = pytest.mark.pipeline


def test_a_plan_for_files_a_dataset_and_a_card(world, run):
    path = world.folder / "plan.json"
    done = run(
        "plan", "--arch", "wan", *world.files("dit", "vae", "t5"), "--dataset_config", world.data,
        "--network_dim", "4", "--vram", "2GiB", "--ram", "16GiB", "--card", "RTX 3060",
        "--json", path,
    )  # fmt: skip
    assert "a training step" in done.stdout
    assert "The fastest settings that fit 2GiB: --compile" in done.stdout
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert figures["card"] == "RTX 3060"
    assert all(phase["needs"] <= 2 * 2**30 for phase in figures["phases"])


def test_a_plan_for_generating_is_asked_for_in_its_words(world, run):
    done = run(
        "plan", "--arch", "wan", "--for", "generate", *world.files("dit", "vae", "t5"),
        "--video_size", "64", "96", "--video_length", "5", "--fp8_t5", "--blocks_to_swap", "1",
        "--json", "-",
    )  # fmt: skip
    figures = json.loads(done.stdout)
    assert figures["flags"] == ["--blocks_to_swap 1"]
    assert figures["phases"][-1]["phase"] == "decode"
    size = figures["phases"][-1]["size"]
    assert (size["width"], size["height"], size["frames"]) == (96, 64, 5)


def test_what_cannot_fit_is_one_sentence(world, run):
    done = run(
        "plan", "--arch", "wan", *world.files("dit"), "--width", "128", "--height", "128",
        "--frames", "9", "--vram", "0.1GiB", ok=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Nothing fits 0.1 GiB at 128x128, 9 frames" in done.stderr
