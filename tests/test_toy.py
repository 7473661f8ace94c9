"""The architecture that has everything, by the command line and through the conformance suite."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from musubi import registry
from musubi.testing import conformance, media, twins
from musubi.testing.toy import ARCHITECTURE

TASK = ARCHITECTURE.tasks[0]


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A folder that registers the toy, for processes that have it on their path."""
    folder = tmp_path_factory.mktemp("registered")
    info = folder / "musubi_toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: musubi-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[musubi.architectures]\ntoy = musubi.testing.toy:ARCHITECTURE\n"
    )
    return folder


@pytest.fixture(scope="module")
def run(registered):
    def run(*words, ok=True):
        path = os.pathsep.join([str(registered), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        done = subprocess.run(
            [sys.executable, "-m", "musubi", *map(str, words)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=env,
        )
        assert not ok or done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models, and three clips with a reference or two, a motion and an area each."""
    folder = tmp_path_factory.mktemp("toy world")
    models = twins.write_twins(ARCHITECTURE, folder / "models", task=TASK)
    for i, colour in enumerate(("red", "blue", "green")):
        clip = media.clip(48, 32, 9, colour=colour)
        for place, frames in (("clips", clip), ("motion", clip[::-1])):
            (folder / place).mkdir(exist_ok=True)
            media.write_video(folder / place / f"{i}.mp4", frames, fps=8)
        (folder / "clips" / f"{i}.txt").write_text(f"a {colour} ball", encoding="utf-8")
        for place, size in (("refs", (24 + 8 * i, 16)), ("areas", (48, 32))):
            (folder / place).mkdir(exist_ok=True)
            picture = Image.new("RGB" if place == "refs" else "L", size, 40 * i + 90)
            picture.save(folder / place / f"{i}.png")
    (folder / "data.toml").write_text(
        "[general]\nresolution = [48, 32]\ncaption_extension = '.txt'\n"
        "[[datasets]]\n"
        f"video_directory = '{(folder / 'clips').as_posix()}'\n"
        f"cache_directory = '{(folder / 'cache').as_posix()}'\n"
        f"reference_directory = '{(folder / 'refs').as_posix()}'\n"
        f"motion_directory = '{(folder / 'motion').as_posix()}'\n"
        f"area_directory = '{(folder / 'areas').as_posix()}'\n"
        "target_frames = [9]\nsource_fps = 8.0\n",
        encoding="utf-8",
    )
    return folder, {name: str(path) for name, path in models.items()}


def files(models, *names):
    return [word for name in names for word in (f"--{name}", models[name])]


@pytest.fixture(scope="module")
def cached(run, world):
    folder, models = world
    data = ("--arch", "toy", "--dataset_config", folder / "data.toml")
    run("cache", "latents", *data, *files(models, "vae", "eye"))
    run("cache", "text", *data, *files(models, "words"))
    return data


def test_records_hold_everything_and_are_fresh(run, world, cached):
    folder, models = world
    (record,) = (folder / "cache").glob("0_*x0032_toy.safetensors")
    names = {key.split("_2x")[0].split("_3x")[0].split("_1x")[0] for key in load_file(record)}
    assert {"latents_motion", "latents_start", "latents_reference_0"} <= names
    again = run("cache", "text", *cached, *files(models, "words")).stdout
    assert "0 encoded, 4 fresh already" in again
    Image.new("RGB", (24, 16), "white").save(folder / "refs" / "0.png")
    try:  # the text encoder saw the old one
        assert (
            "1 encoded, 3 fresh already"
            in run("cache", "text", *cached, *files(models, "words")).stdout
        )
    finally:
        run("cache", "latents", *cached, *files(models, "vae", "eye"))


@pytest.fixture(scope="module")
def trained(run, world, cached):
    folder, models = world
    common = (
        *("train", *cached, "--task", "all", *files(models, "dit", "dit_high_noise")),
        *("--network_dim", 2, "--learning_rate", "1e-2", "--optimizer_type", "adamw"),
        *("--mixed_precision", "no", "--seed", 5, "--max_data_loader_n_workers", 0),
        *("--timestep_sampling", "uniform", "--sdpa", "--log_with", "none"),
    )
    for name, steps in (("whole", 6), ("cut", 3)):
        run(*common, "--output_dir", folder / name, "--output_name", "lora",
            "--max_train_steps", steps, "--save_state_on_train_end")  # fmt: skip
    run(*common, "--output_dir", folder / "cut", "--output_name", "lora",
        "--max_train_steps", 6, "--resume", "auto", "--offload_inactive_dit")  # fmt: skip
    return folder


@pytest.mark.parametrize("ending", ["", "_high_noise"])
def test_both_denoisers_are_trained_and_a_resumed_run_ends_alike(trained, ending):
    whole, cut = (load_file(trained / n / f"lora{ending}.safetensors") for n in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert any(t.abs().sum() > 0 for n, t in whole.items() if "up" in n or "lora_B" in n)


def generated(run, world, *more, ok=True):
    folder, models = world
    words = files(models, "dit", "dit_high_noise", "vae", "eye", "words")
    out = folder / f"out{len(list(folder.glob('out*')))}"
    done = run(
        *("generate", "--arch", "toy", "--task", "all", *words, "--save_path", out),
        *("--prompt", "a ball;;;a square", "--start_path", folder / "refs" / "1.png", "--seed", 3),
        *("--output_type", "latent", *more),
        ok=ok,
    )
    found = sorted(out.glob("*.safetensors")) if ok else []
    return load_file(found[0])["latent"] if found else done


def test_generating_uses_inputs_texts_and_each_denoisers_lora(run, world, trained):
    folder, _ = world
    plain = generated(run, world)
    assert plain.shape == (4, 3, 4, 6) and plain.isfinite().all()
    assert torch.equal(plain, generated(run, world))
    changes = [
        ("--reference_path", folder / "refs" / "0.png", folder / "refs" / "2.png"),
        ("--motion_path", folder / "motion" / "0.mp4"),
        ("--boundary", 0.9),
        ("--lora_weight", trained / "whole" / "lora.safetensors"),
        ("--lora_weight_high_noise", trained / "whole" / "lora_high_noise.safetensors"),
    ]
    for change in changes:
        assert not torch.equal(plain, generated(run, world, *change)), change
    other = generated(run, world, "--prompt", "a ball;;;a cat")
    assert torch.equal(plain[:, :2], other[:, :2])  # the first section has the same prompt
    assert not torch.equal(plain[:, 2:], other[:, 2:])


def test_what_is_needed_is_said_before_anything_is_loaded(run, world):
    folder, models = world
    done = run("generate", "--arch", "toy", "--task", "all", *files(models, *models),
               "--save_path", folder / "no", "--prompt", "a", ok=False)  # fmt: skip
    assert done.returncode == 2 and "Give --start_path PATH, or --i" in done.stderr
    assert "Loading" not in done.stdout + done.stderr


def test_lora_tools_and_the_plan_take_it(run, world, trained, tmp_path):
    _, models = world
    file = trained / "whole" / "lora.safetensors"
    merged = tmp_path / "merged.safetensors"
    run("lora", "merge", "--arch", "toy", "--dit", models["dit"], "--lora_weight", file,
        "--save_merged_model", merged)  # fmt: skip
    assert merged.exists()
    run("lora", "info", file)
    plan = run("plan", "--arch", "toy", "--for", "generate", "--task", "all", "--json", "-",
               *files(models, "dit", "vae", "eye", "words")).stdout  # fmt: skip
    figures = json.loads(plan[plan.index("{") :])
    assert [p["phase"] for p in figures["phases"]][-1] == "decode"
    assert np.isfinite([p["device"] for p in figures["phases"]]).all()


@pytest.fixture
def subject(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(registry, "find", lambda name: ARCHITECTURE)
    return conformance.Subject("toy", tmp_path_factory.getbasetemp() / "toy twins")


@pytest.mark.parametrize(
    "check",
    [c for c in conformance.CHECKS if c is not conformance.says_itself_without_torch],
    ids=lambda check: check.__name__,
)
def test_conforms(subject, check):
    check(subject)


@pytest.mark.parametrize("check", conformance.TASK_CHECKS, ids=lambda check: check.__name__)
def test_its_task_conforms(subject, check):
    check(subject, TASK)
