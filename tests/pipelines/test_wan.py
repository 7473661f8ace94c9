"""Wan text to video, from files on disk to a merged checkpoint, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

pytestmark = pytest.mark.pipeline


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(str(path), "pt") as file:
        return file.metadata()


def train_words(world, *more: object) -> list[object]:
    return [
        *("train", "--arch", "wan", "--task", "t2v-1.3B", *world.files("dit")),
        *("--dataset_config", world.data, "--sdpa", "--mixed_precision", "bf16"),
        *("--optimizer_type", "adamw", "--learning_rate", "2e-3", "--gradient_checkpointing"),
        *("--network_dim", "4", "--timestep_sampling", "shift", "--discrete_flow_shift", "3.0"),
        *("--max_train_epochs", "2", "--save_every_n_epochs", "1", "--save_state", "--seed", "42"),
        *("--output_dir", world.out, "--output_name", "cat"),
        *more,
    ]


def generate_words(world, *more: object) -> list[object]:
    return [
        *("generate", "--arch", "wan", "--task", "t2v-1.3B", *world.files("dit", "vae", "t5")),
        *("--prompt", "a red ball moves right", "--video_size", "48", "64", "--video_length", "9"),
        *("--infer_steps", "3", "--seed", "7", *more),
    ]


@pytest.fixture(scope="module")
def cached(run, world):
    latents = run(
        "cache", "latents", "--arch", "wan", "--dataset_config", world.data, *world.files("vae")
    )
    text = run("cache", "text", "--arch", "wan", "--dataset_config", world.data, *world.files("t5"))
    return latents, text


@pytest.fixture(scope="module")
def trained(run, world, cached):
    return run(*train_words(world))


def test_models_lists_files_and_where_they_are_published(run):
    shown = run("models", "show", "wan").stdout
    assert "Wan-AI/Wan2.1-T2V-1.3B" in shown and "Apache" in shown
    assert "wan" in run("models").stdout


def test_caching_writes_the_old_names_and_does_nothing_twice(run, world, cached):
    names = {p.name for p in (world.folder / "data").rglob("*.safetensors")}
    assert "red_0_0064x0048_wan.safetensors" in names
    assert "red_0_00000-009_0064x0048_wan.safetensors" in names
    assert "red_0_wan_te.safetensors" in names
    record = load_file(world.folder / "data/video_cache/red_0_00000-009_0064x0048_wan.safetensors")
    assert record["latents_3x6x8_bfloat16"].shape == (16, 3, 6, 8)
    before = {p: p.stat().st_mtime_ns for p in (world.folder / "data").rglob("*.safetensors")}
    run("cache", "latents", "--arch", "wan", "--dataset_config", world.data, *world.files("vae"))
    run("cache", "text", "--arch", "wan", "--dataset_config", world.data, *world.files("t5"))
    assert before == {
        p: p.stat().st_mtime_ns for p in (world.folder / "data").rglob("*.safetensors")
    }


def test_check_accounts_for_every_file(run, world, cached):
    shown = run("cache", "check", "--arch", "wan", "--dataset_config", world.data).stdout
    assert "64x48" in shown.replace(" ", "").replace("×", "x")


def test_training_writes_a_lora_with_its_metadata(world, trained):
    path = world.out / "cat.safetensors"
    tensors = load_file(path)
    assert (world.out / "cat-000001.safetensors").exists()
    down = tensors["lora_unet_blocks_0_self_attn_q.lora_down.weight"]
    assert down.shape[0] == 4 and down.dtype == torch.bfloat16
    assert any(t.any() for name, t in tensors.items() if "lora_up" in name)
    metadata = metadata_of(path)
    assert metadata["ss_base_model_version"] == "wan"
    assert metadata["modelspec.architecture"] == "wan2.1/lora"
    assert len(metadata["sshs_model_hash"]) == 64


def test_every_step_is_in_the_metrics(world, trained):
    lines = (world.out / "cat" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    # two images, and two videos of which each gives a crop of 1 and one of 9 frames
    assert [s["step"] for s in steps if "loss/current" in s] == list(range(1, 13))


def test_the_saved_config_resumes_the_run(run, world, trained):
    config = world.out / "cat" / "config.toml"
    run(
        *("train", "--arch", "wan", "--config", config, "--resume", "auto"),
        *("--max_train_epochs", "3"),
    )
    assert metadata_of(world.out / "cat.safetensors")["ss_steps"] == "18"


def test_generating_with_the_lora_differs_and_repeats(run, world, trained):
    made = {}
    for name, more in {
        "plain": (),
        "lora": ("--lora_weight", world.out / "cat.safetensors", "--lora_multiplier", "1.0"),
        "again": ("--lora_weight", world.out / "cat.safetensors"),
        "attached": ("--lora_weight", world.out / "cat.safetensors", "--lora_mode", "attach"),
    }.items():
        place = world.folder / "made" / name
        run(*generate_words(world, *more, "--save_path", place, "--output_type", "both"))
        (video,) = place.glob("*.mp4")
        (latent,) = place.glob("*_latent.safetensors")
        assert frames_of(video) == 9
        made[name] = load_file(latent)["latent"].float()
    assert made["plain"].shape == (16, 3, 6, 8)
    assert torch.equal(made["lora"], made["again"])
    assert not torch.equal(made["plain"], made["lora"])
    # merging rounds the weights once to bfloat16, attaching does not
    assert (made["attached"] - made["lora"]).norm() < 0.05 * made["lora"].norm()


def test_latents_decode_to_the_same_video(run, world, trained):
    place = world.folder / "latents"
    run(*generate_words(world, "--save_path", place, "--output_type", "latent"))
    (latent,) = place.glob("*_latent.safetensors")
    run(
        *("generate", "--arch", "wan", "--task", "t2v-1.3B", *world.files("vae")),
        *("--latent_path", latent, "--save_path", place, "--output_type", "images"),
    )
    assert len(list(place.rglob("*.png"))) == 9


def test_merging_gives_what_the_lora_gives(run, world, trained):
    merged, place = world.out / "merged.safetensors", world.folder / "merged"
    lora = world.out / "cat.safetensors"
    run(
        "lora",
        "merge",
        "--arch",
        "wan",
        *world.files("dit"),
        "--lora_weight",
        lora,
        "--save_merged_model",
        merged,
    )
    assert set(load_file(merged)) == set(load_file(world.models["dit"]))
    words = generate_words(world, "--save_path", place, "--output_type", "latent")
    words[words.index("--dit") + 1] = merged
    run(*words)
    place_lora = world.folder / "with-lora"
    run(
        *generate_words(
            world, "--lora_weight", lora, "--save_path", place_lora, "--output_type", "latent"
        )
    )
    one, other = (
        load_file(next(p.glob("*_latent.safetensors")))["latent"].float()
        for p in (place, place_lora)
    )
    assert (one - other).norm() < 1e-4 * other.norm()


def test_info_tells_what_a_lora_is(run, world, trained):
    shown = run("lora", "info", world.out / "cat.safetensors").stdout
    assert "wan" in shown and "kohya" in shown and "bfloat16" in shown


def test_training_caches_what_is_missing_when_it_has_the_files(run, tmp_path):
    from musubi.testing import media

    data = media.write_dataset(tmp_path / "data", videos=0)
    models = Path(tmp_path / "models")
    from musubi import registry
    from musubi.testing import twins

    paths = twins.write_twins(registry.find("wan"), models, task=registry.find("wan").task("t2v"))
    run(
        *(
            "train",
            "--arch",
            "wan",
            "--dit",
            paths["dit"],
            "--vae",
            paths["vae"],
            "--t5",
            paths["t5"],
        ),
        *("--dataset_config", data, "--max_train_steps", "1", "--network_dim", "2"),
        *("--output_dir", tmp_path / "out", "--output_name", "a"),
    )
    assert (tmp_path / "out" / "a.safetensors").exists()
