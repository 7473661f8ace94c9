"""Memory settings on the command line: what is trained and generated stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

pytestmark = pytest.mark.pipeline

EVERYTHING = (
    *("--blocks_to_swap", "2", "--recompute", "attention", "--gradient_checkpointing_cpu_offload"),
    "--optimizer_offload",
)


@pytest.fixture(scope="module")
def cached(run, world):
    words = ("--arch", "wan", "--dataset_config", world.data)
    run("cache", "latents", *words, *world.files("vae"))
    run("cache", "text", *words, *world.files("t5"))


def trained(run, world, name: str, *more: object) -> Path:
    prompts = world.folder / "prompts.txt"
    prompts.write_text("a red ball --w 64 --h 48 --f 5 --d 1 --s 2\n", encoding="utf-8")
    run(
        *("train", "--arch", "wan", *world.files("dit", "vae", "t5")),
        *("--dataset_config", world.data, "--mixed_precision", "no", "--network_dim", "4"),
        *("--learning_rate", "2e-3", "--max_train_steps", "3", "--save_precision", "fp32"),
        *("--seed", "42", "--sample_prompts", prompts, "--sample_every_n_steps", "2"),
        *("--output_dir", world.out / name, "--output_name", "cat", *more),
    )
    return world.out / name / "cat.safetensors"


@pytest.fixture(scope="module")
def plain(run, world, cached):
    return load_file(trained(run, world, "plain"))


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    a, b = (torch.cat([t[n].flatten() for n in sorted(expected)]) for t in (found, expected))
    return float((a - b).norm() / b.norm())


def test_where_numbers_are_changes_nothing(run, world, plain):
    found = load_file(trained(run, world, "moved", *EVERYTHING))
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    samples = [sorted((world.out / n / "sample").rglob("*.mp4")) for n in ("plain", "moved")]
    assert len(samples[0]) == len(samples[1]) > 0


def test_8_bits_train_nearly_the_same_and_say_so(run, world, plain):
    path = trained(run, world, "eight", "--fp8_base", "--fp8_scaled", "--fp8_fast", *EVERYTHING)
    assert 0 < apart(load_file(path), plain) < 0.5
    with safe_open(str(path), "pt") as file:
        assert file.metadata()["ss_fp8_base"] == "True"


def test_integers_train_closer_than_fp8(run, world, plain):
    path = trained(run, world, "integers", "--int8_fast", "--offload_8bit", *EVERYTHING)
    assert 0 < apart(load_file(path), plain) < 0.25
    with safe_open(str(path), "pt") as file:
        assert file.metadata()["ss_int8"] == "True"


def test_vram_chooses_and_says_what(run, world, plain):
    words = (
        *("train", "--arch", "wan", *world.files("dit"), "--dataset_config", world.data),
        *("--network_dim", "4", "--max_train_steps", "1", "--output_dir", world.out / "chosen"),
        *("--mixed_precision", "no", "--no-compile"),
    )
    done = run(*words, "--vram", "4GiB")
    (said,) = [line for line in (done.stdout + done.stderr).splitlines() if "--vram 4GiB:" in line]
    assert "--compile" not in said
    refused = run(*words, "--vram", "10MiB", ok=False)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


def test_generating_with_streamed_blocks_gives_the_same_latents(run, world):
    made = {}
    for name, more in {
        "plain": (),
        "streamed": ("--blocks_to_swap", "2", "--text_encoder_swap", "1"),
        "eight": ("--fp8", "--fp8_scaled", "--blocks_to_swap", "1"),
        "integers": ("--int8_fast", "--blocks_to_swap", "1"),
        "t5": ("--fp8_t5",),
    }.items():
        folder = world.out / f"made {name}"
        run(
            *("generate", "--arch", "wan", *world.files("dit", "vae", "t5"), "--prompt", "a ball"),
            *("--video_size", "48", "64", "--video_length", "5", "--infer_steps", "2"),
            *("--seed", "7", "--output_type", "latent", "--save_path", folder, *more),
        )
        (path,) = folder.glob("*.safetensors")
        made[name] = load_file(path)
    assert apart(made["streamed"], made["plain"]) == 0
    assert 0 < apart(made["eight"], made["plain"]) < 0.3
    assert 0 < apart(made["integers"], made["plain"]) < apart(made["eight"], made["plain"])
    assert 0 < apart(made["t5"], made["plain"]) < 0.3


def test_captions_from_an_encoder_in_8_bits_are_other_records(run, world, cached):
    words = ("cache", "text", "--arch", "wan", "--dataset_config", world.data, *world.files("t5"))
    (record, *_) = sorted((world.folder / "data").rglob("*_wan_te.safetensors"))
    before = record.stat().st_mtime_ns
    run(*words)
    assert record.stat().st_mtime_ns == before
    run(*words, "--fp8_t5")
    assert record.stat().st_mtime_ns != before
