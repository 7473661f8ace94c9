"""HunyuanVideo and SkyReels V1, from files on disk to a video, as a user types it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from musubi import registry
from musubi.testing import media, twins

pytestmark = pytest.mark.pipeline

ARCH = ("--arch", "hunyuan_video")


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


class World:
    """A folder with toy networks in the released layouts, a SkyReels denoiser, a small dataset."""

    def __init__(self, folder: Path) -> None:
        architecture = registry.find("hunyuan_video")
        self.folder = folder
        self.models = twins.write_twins(architecture, folder / "models")
        self.models["vae"] = twins.write_twin(
            architecture.component("vae"), folder / "models" / "official", suffix=".pt"
        )
        image = replace(architecture.dit, tiny={**architecture.dit.tiny, "in_channels": 32})
        self.models["i2v"] = twins.write_twin(image, folder / "models" / "i2v")
        self.data = media.write_dataset(folder / "data")
        self.out = folder / "out"

    def files(self, *names: str, dit: str = "dit") -> list[str]:
        """`--name path` for each."""
        paths = {**self.models, "dit": self.models[dit]}
        return [word for name in names for word in (f"--{name}", str(paths[name]))]


ENCODERS = ("text_encoder1", "text_encoder2")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("hv") / "my [cat] 猫")


@pytest.fixture(scope="module")
def cached(run, world):
    data = ("--dataset_config", world.data)
    run("cache", "latents", *ARCH, *data, *world.files("vae"), "--vae_dtype", "float32",
        "--vae_chunk_size", "32", "--vae_tiling")  # fmt: skip
    run("cache", "text", *ARCH, *data, *world.files(*ENCODERS),
        "--text_encoder_dtype", "float32")  # fmt: skip


def train_words(world, name, *more, dit="dit") -> list[object]:
    return [
        *("train", *ARCH, *world.files("dit", dit=dit), "--dataset_config", world.data, "--sdpa"),
        *("--mixed_precision", "bf16", "--optimizer_type", "adamw", "--learning_rate", "2e-3"),
        *("--gradient_checkpointing", "--network_module", "networks.lora", "--network_dim", "4"),
        *("--timestep_sampling", "sigmoid", "--guidance_scale", "6.0", "--split_attn"),
        *("--max_train_epochs", "1", "--seed", "42", "--dit_in_channels", "16"),
        *("--output_dir", world.out, "--output_name", name, *more),
    ]


def generate_words(world, place, *more, dit="dit") -> list[object]:
    return [
        *("generate", *ARCH, *world.files("dit", "vae", *ENCODERS, dit=dit)),
        *("--prompt", "a red ball moves right", "--video_size", "48", "64", "--video_length", "9"),
        *("--infer_steps", "2", "--seed", "7", "--vae_dtype", "float32", "--save_path", place),
        *("--output_type", "both", "--text_encoder_dtype", "float32", *more),
    ]


@pytest.fixture(scope="module")
def trained(run, world, cached):
    words = ("--sample_prompts", world.folder / "prompts.txt", "--sample_every_n_epochs", "1")
    line = "a red ball --w 64 --h 48 --f 5 --s 1 --g 4.0 --d 1 --fs 7\n"
    (world.folder / "prompts.txt").write_text(line, encoding="utf-8")
    return run(*train_words(world, "cat", *words), *world.files("vae", *ENCODERS),
               "--vae_dtype", "float32", "--text_encoder_dtype", "float32")  # fmt: skip


def made(run, world, name, *more, dit="dit"):
    place = world.folder / "made" / name
    run(*generate_words(world, place, *more, dit=dit))
    (video,) = place.glob("*.mp4")
    (latent,) = place.glob("*_latent.safetensors")
    assert frames_of(video) == 9
    return load_file(latent)["latent"].float()


def test_caching_writes_the_old_names_and_shapes(world, cached):
    latents = load_file(world.folder / "data/video_cache/red_0_00000-009_0064x0048_hv.safetensors")
    assert {n: tuple(t.shape) for n, t in latents.items()} == {
        "latents_3x6x8_float32": (16, 3, 6, 8)
    }
    text = load_file(world.folder / "data/video_cache/red_0_hv_te.safetensors")
    assert {n: tuple(t.shape) for n, t in text.items()} == {
        "llm_float32": (256, 32),
        "llm_mask": (256,),
        "clipL_float32": (16,),
        "clipL_mask": (77,),
    }
    assert text["llm_mask"].dtype == text["clipL_mask"].dtype == torch.int64


def test_training_writes_a_lora_and_a_preview(world, trained):
    path = world.out / "cat.safetensors"
    tensors = load_file(path)
    assert "diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight" in tensors
    assert "diffusion_model.single_blocks.1.linear2.lora_B.weight" in tensors
    assert any(t.any() for name, t in tensors.items() if "lora_B" in name)
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "hunyuan_video"
    assert metadata["modelspec.architecture"] == "hunyuan-video/lora"
    assert len(list((world.out / "sample").glob("cat_e000001_00_*.mp4"))) == 1


def test_guidance_scale_of_training_is_no_old_flag_here(world, trained):
    assert "not told a guidance scale" not in trained.stdout + trained.stderr


def test_generating_with_the_lora_and_with_guidance_differs(run, world, trained):
    plain = made(run, world, "plain")
    assert plain.shape == (16, 3, 6, 8)
    lora = world.out / "cat.safetensors"
    assert not torch.equal(plain, made(run, world, "lora", "--lora_weight", lora))
    # whether it is embedded, or classifier-free
    assert not torch.equal(plain, made(run, world, "embedded", "--embedded_cfg_scale", "1.0"))
    guided = made(run, world, "cfg", "--guidance_scale", "3.0", "--split_uncond",
                  "--vae_spatial_tile_sample_min_size", "32")  # fmt: skip
    assert not torch.equal(plain, guided)


def test_single_blocks_can_be_spared(run, world, trained):
    lora = ("--lora_weight", world.out / "cat.safetensors")
    double = made(run, world, "double", *lora, "--exclude_single_blocks")
    patterns = ("--exclude_patterns", "single_blocks")
    assert torch.equal(double, made(run, world, "patterns", *lora, *patterns))
    dit = ("--dit", world.models["dit"])
    target = world.folder / "merged.safetensors"
    run("lora", "merge", *ARCH, *dit, *lora, "--save_merged_model", target,
        "--exclude_single_blocks")  # fmt: skip
    before, after = load_file(world.models["dit"]), load_file(target)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("double_blocks.") for name in changed)
    with_all = world.folder / "all.safetensors"
    run(*generate_words(world, world.folder / "unused", *lora, "--exclude_single_blocks",
                        "--save_merged_model", with_all))  # fmt: skip
    again = load_file(with_all)
    assert all(torch.equal(again[name], after[name]) for name in after)


def test_a_video_is_changed_the_more_the_stronger(run, world):
    source = next((world.folder / "data").rglob("*.mp4"))
    start = ("--video_path", source, "--infer_steps", "4")
    weak = made(run, world, "weak", *start, "--strength", "0.25")
    strong = made(run, world, "strong", *start)
    fresh = made(run, world, "fresh", "--infer_steps", "4")
    assert torch.equal(fresh, made(run, world, "all", *start, "--strength", "1.0"))
    assert (strong - fresh).norm() < (weak - fresh).norm()
    words = ("--video_path", source, "--video_length", "129")
    refused = run(*generate_words(world, world.folder / "no", *words), ok=False)
    assert refused.returncode == 2 and "is to have 129" in refused.stderr + refused.stdout


def test_skyreels_trains_and_starts_from_an_image(run, world, cached):
    run(*train_words(world, "sky", "--task", "skyreels-i2v", dit="i2v"))
    image = next((world.folder / "data").rglob("*.png"))
    words = ("--task", "skyreels-i2v", "--image_path", image)
    lora = ("--lora_weight", world.out / "sky.safetensors")
    one = made(run, world, "i2v", *words, *lora, dit="i2v")
    other = made(run, world, "i2v-again", *words, dit="i2v")
    assert one.shape == (16, 3, 6, 8)
    assert not torch.equal(one, other)
    refused = run(*generate_words(world, world.folder / "no", dit="i2v"), ok=False)
    assert refused.returncode == 2 and "--image_path" in refused.stderr + refused.stdout
