"""What goes wrong for users, and the sentence each of them gets. Every case runs the real command.

A case prepares a folder, runs one command in this process, and names what must be said.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.cli import main
from musubi.testing import media, twins

Said = Callable[..., str]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    return twins.write_twins(
        registry.find("wan"),
        tmp_path_factory.mktemp("models"),
        task=registry.find("wan").task("t2v"),
    )


@pytest.fixture
def say(capfd, monkeypatch, tmp_path) -> Said:
    """Run a command; give back all it said on one line. `code` is the exit status it must have."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty hub"))
    monkeypatch.setenv("COLUMNS", "2000")

    def call(*words: object, code: int = 2) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(w) for w in words])
        out, err = capfd.readouterr()
        text = " ".join((out + " " + err).split())
        assert (end.value.code or 0) == code, f"exit {end.value.code}: {text}"
        assert "Traceback" not in text
        return text

    return call


def dataset(folder: Path, **more: object) -> Path:
    """One image with a caption, and the dataset file; `more` are its keys."""
    picture = media.frame(64, 48, colour="red", shape="ball", at=0.5)
    media.write_image(folder / "images" / "a.png", picture)
    (folder / "images" / "a.txt").write_text("a red ball", encoding="utf-8")
    keys = {
        "image_directory": (folder / "images").as_posix(),
        "cache_directory": (folder / "cache").as_posix(),
        "caption_extension": ".txt",
        "resolution": [64, 48],
        **more,
    }
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in keys.items()
        if value is not None
    ]
    path = folder / "data.toml"
    path.write_text("[[datasets]]\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def videos(folder: Path, frames: int = 9, **more: object) -> Path:
    """One video with a caption, and the dataset file."""
    media.write_video(folder / "videos" / "a.mp4", media.clip(64, 48, frames))
    (folder / "videos" / "a.txt").write_text("a red ball", encoding="utf-8")
    keys = {
        "image_directory": None,
        "video_directory": (folder / "videos").as_posix(),
        "target_frames": [5],
    }
    shutil.rmtree(folder / "images", ignore_errors=True)
    path = dataset(folder, **keys, **more)
    shutil.rmtree(folder / "images")
    return path


def check(path: Path) -> list[object]:
    return ["cache", "check", "--arch", "wan", "--dataset_config", path]


def latents(path: Path, vae: Path, *more: object) -> list[object]:
    return ["cache", "latents", "--arch", "wan", "--dataset_config", path, "--vae", vae, *more]


def text(path: Path, t5: Path, *more: object) -> list[object]:
    return ["cache", "text", "--arch", "wan", "--dataset_config", path, "--t5", t5, *more]


def train(path: Path, models: dict[str, Path], out: Path, *more: object) -> list[object]:
    return [
        *("train", "--arch", "wan", "--dit", models["dit"], "--dataset_config", path, "--seed", 1),
        *(
            "--max_train_steps",
            2,
            "--network_dim",
            2,
            "--output_dir",
            out,
            "--output_name",
            "x",
            *more,
        ),
    ]


def generate(models: dict[str, Path], out: Path, *more: object) -> list[object]:
    files = [word for name in ("dit", "vae", "t5") for word in (f"--{name}", models[name])]
    return [
        *("generate", "--arch", "wan", *files, "--prompt", "a ball", "--video_size", 48, 64),
        *("--video_length", 5, "--infer_steps", 2, "--seed", 1, "--save_path", out, *more),
    ]


@pytest.fixture
def ready(tmp_path, models, say) -> Path:
    """A dataset whose records are fresh."""
    path = dataset(tmp_path)
    say(*latents(path, models["vae"]), code=0)
    say(*text(path, models["t5"]), code=0)
    return path


def expect(said: str, *fragments: str) -> None:
    for fragment in fragments:
        assert re.search(fragment, said), f"{fragment!r} is not in: {said}"


# ── the command line ──────────────────────────────────────────────────────────────────────────────


def test_unknown_architecture(say, tmp_path):
    expect(
        say("cache", "check", "--arch", "wam", "--dataset_config", "x"),
        "no architecture 'wam'",
        "Did you mean 'wan'",
    )


def test_unknown_flag(say, models, tmp_path):
    said = say(*train(tmp_path, models, tmp_path, "--learning_rat", "1e-4"))
    expect(said, "learning_rat", "learning_rate")


def test_value_of_the_wrong_type(say, models, tmp_path):
    expect(say(*train(tmp_path, models, tmp_path, "--network_dim", "many")), "network_dim", "many")


def test_value_that_is_not_a_choice(say, models, tmp_path):
    expect(
        say(*train(tmp_path, models, tmp_path, "--timestep_sampling", "shfit")),
        "timestep_sampling",
        "shift",
    )


def test_unknown_key_in_the_config_file(say, models, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("[train]\nlearning_rte = 1e-4\n", encoding="utf-8")
    said = say(*train(tmp_path, models, tmp_path, "--config", config))
    expect(said, "learning_rte", "learning_rate", "run.toml")


def test_config_file_that_is_not_toml(say, models, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("learning_rate: 1e-4\n", encoding="utf-8")
    expect(say(*train(tmp_path, models, tmp_path, "--config", config)), "run.toml", "line 1")


def test_missing_required_option(say):
    expect(say("cache", "latents", "--arch", "wan"), "--dataset_config")


def test_missing_component_path(say, tmp_path):
    path = dataset(tmp_path)
    expect(say("cache", "latents", "--arch", "wan", "--dataset_config", path), "--vae")


def test_unknown_task(say, models, tmp_path):
    expect(say(*generate(models, tmp_path, "--task", "t2v-13B")), "t2v-13B", "t2v-1.3B")


# ── the dataset file ──────────────────────────────────────────────────────────────────────────────


def test_no_dataset_file(say, tmp_path):
    (tmp_path / "data.toml").write_text("")
    expect(say(*check(tmp_path / "dat.toml")), "dat.toml", "data.toml")


def test_dataset_file_with_a_syntax_error(say, tmp_path):
    path = tmp_path / "data.toml"
    path.write_text("[[datasets]\n", encoding="utf-8")
    expect(say(*check(path)), "data.toml", "line 1")


def test_unknown_dataset_key(say, tmp_path):
    expect(say(*check(dataset(tmp_path, enable_bukcet=True))), "enable_bukcet", "enable_bucket")


def test_missing_directory(say, tmp_path):
    path = dataset(tmp_path, image_directory=(tmp_path / "imagse").as_posix())
    expect(say(*check(path)), "imagse")


def test_frames_that_are_not_four_k_plus_one(say, tmp_path):
    path = videos(tmp_path, 25)
    path.write_text(path.read_text(encoding="utf-8").replace("[5]", "[24]"), encoding="utf-8")
    said = say(*check(path), code=0)
    expect(said, "target_frames", "24", "21")


def test_whole_number_for_source_fps(say, tmp_path):
    say(*check(videos(tmp_path, source_fps=30)), code=0)


def test_jsonl_without_a_cache_directory(say, tmp_path):
    lines = tmp_path / "data.jsonl"
    lines.write_text('{"image_path": "a.png", "caption": "a"}\n', encoding="utf-8")
    path = dataset(
        tmp_path, image_directory=None, cache_directory=None, image_jsonl_file=lines.as_posix()
    )
    expect(say(*check(path)), "cache_directory")


def test_broken_jsonl_line(say, tmp_path):
    lines = tmp_path / "data.jsonl"
    lines.write_text('{"image_path": "a.png", "caption": "a"}\n{"image_path"\n', encoding="utf-8")
    path = dataset(tmp_path, image_directory=None, image_jsonl_file=lines.as_posix())
    expect(say(*check(path)), "data.jsonl", "line 2|:2")


def test_two_datasets_with_one_cache(say, tmp_path):
    path = dataset(tmp_path)
    path.write_text(path.read_text(encoding="utf-8") * 2, encoding="utf-8")
    expect(say(*check(path)), "cache_directory")


def test_captions_that_are_not_there(say, tmp_path):
    path = dataset(tmp_path)
    (tmp_path / "images" / "a.txt").unlink()
    expect(say(*check(path)), "a.png", "caption", "a.txt")


def test_caption_extension_without_its_dot(say, tmp_path):
    expect(say(*check(dataset(tmp_path, caption_extension="txt")), code=0), '"txt"', r'"\.txt"')


def test_empty_caption(say, tmp_path):
    path = dataset(tmp_path)
    (tmp_path / "images" / "a.txt").write_text(" \n")
    expect(say(*check(path)), "a.txt", "empty")


def test_caption_that_is_not_utf8(say, tmp_path):
    path = dataset(tmp_path)
    (tmp_path / "images" / "a.txt").write_bytes("café".encode("latin-1"))
    expect(say(*check(path)), "a.txt", "UTF-8")


# ── images and videos ─────────────────────────────────────────────────────────────────────────────


def with_a_good_one(folder: Path, name: str, content: bytes) -> Path:
    path = dataset(folder)
    (folder / "images" / name).write_bytes(content)
    (folder / "images" / name).with_suffix(".txt").write_text("a thing", encoding="utf-8")
    return path


def test_zero_byte_image(say, models, tmp_path):
    path = with_a_good_one(tmp_path, "b.png", b"")
    expect(say(*latents(path, models["vae"]), code=0), "b.png", "empty|0 bytes|zero")
    assert len(list((tmp_path / "cache").glob("*_wan.safetensors"))) == 1


def test_zero_byte_image_when_strict(say, models, tmp_path):
    path = with_a_good_one(tmp_path, "b.png", b"")
    expect(say(*latents(path, models["vae"], "--strict")), "b.png")


def test_image_that_is_text(say, models, tmp_path):
    path = with_a_good_one(tmp_path, "b.jpg", b"hello, this is no picture")
    expect(say(*latents(path, models["vae"]), code=0), "b.jpg")


def test_truncated_image(say, models, tmp_path):
    path = dataset(tmp_path)
    whole = (tmp_path / "images" / "a.png").read_bytes()
    path = with_a_good_one(tmp_path, "b.png", whole[: len(whole) // 2])
    expect(say(*latents(path, models["vae"]), code=0), "b.png")


def test_truncated_video(say, models, tmp_path):
    path = videos(tmp_path)
    whole = (tmp_path / "videos" / "a.mp4").read_bytes()
    (tmp_path / "videos" / "a.mp4").write_bytes(whole[: len(whole) // 2])
    expect(say(*latents(path, models["vae"])), "a.mp4")


def test_video_shorter_than_every_target(say, tmp_path):
    expect(say(*check(videos(tmp_path, 3))), "a.mp4", "3 frames", "5")


def test_two_files_of_one_stem(say, tmp_path):
    path = dataset(tmp_path)
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / "a.webp")
    expect(say(*check(path), code=0), "a.png", "a.webp")


def test_bucket_smaller_than_the_batch(say, tmp_path):
    expect(say(*check(dataset(tmp_path, batch_size=4)), code=0), "batch")


def test_names_that_other_tools_stumble_over(say, models, tmp_path):
    path = dataset(tmp_path / "a [b] 猫 c")
    said = say(*latents(path, models["vae"]), code=0)
    assert len(list((tmp_path / "a [b] 猫 c" / "cache").iterdir())) == 1, said


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────


def test_vae_given_as_dit(say, models, ready, tmp_path):
    expect(say(*train(ready, {**models, "dit": models["vae"]}, tmp_path)), "--dit|dit", "vae|VAE")


def test_dit_given_as_vae(say, models, tmp_path):
    expect(say(*latents(dataset(tmp_path), models["dit"])), "dit|DiT")


def test_checkpoint_of_another_model(say, models, ready, tmp_path):
    path = tmp_path / "hunyuan.safetensors"
    save_file({"double_blocks.0.img_attn_qkv.weight": torch.zeros(8, 8)}, path)
    expect(say(*train(ready, {**models, "dit": path}, tmp_path)), "hunyuan.safetensors", "Wan")


def test_lora_given_as_dit(say, models, ready, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.zeros(4, 8)}, path)
    expect(say(*train(ready, {**models, "dit": path}, tmp_path)), "lora.safetensors")


def test_checkpoint_that_does_not_exist(say, models, tmp_path):
    absent = models["vae"].with_name("vea.safetensors")
    expect(say(*latents(dataset(tmp_path), absent)), "vea.safetensors", "vae.safetensors")


def test_truncated_checkpoint(say, models, tmp_path):
    path = tmp_path / "vae.safetensors"
    path.write_bytes(models["vae"].read_bytes()[:-1000])
    expect(say(*latents(dataset(tmp_path), path)), "vae.safetensors", "truncated|incomplete")


def test_empty_checkpoint(say, tmp_path):
    path = tmp_path / "vae.safetensors"
    path.write_bytes(b"")
    expect(say(*latents(dataset(tmp_path), path)), "vae.safetensors", "empty")


def test_checkpoint_that_is_a_web_page(say, tmp_path):
    path = tmp_path / "vae.safetensors"
    path.write_text("<!DOCTYPE html><html><body>404</body></html>" * 10)
    expect(say(*latents(dataset(tmp_path), path)), "vae.safetensors")


class _Code:
    def __reduce__(self):
        return os.system, ("echo this must not run > /tmp/musubi-pickled-code",)


def test_pickle_that_carries_code(say, tmp_path):
    path = tmp_path / "vae.pth"
    with path.open("wb") as file:
        pickle.dump({"encoder.conv1.weight": _Code()}, file)
    expect(say(*latents(dataset(tmp_path), path)), "vae.pth", "code")
    assert not Path("/tmp/musubi-pickled-code").exists()


def test_checkpoint_with_a_tensor_missing(say, models, tmp_path):
    tensors = load_file(models["vae"])
    name = "decoder.middle.2.residual.2.weight"
    del tensors[name]
    save_file(tensors, tmp_path / "vae.safetensors")
    expect(
        say(*latents(dataset(tmp_path), tmp_path / "vae.safetensors")),
        "vae.safetensors",
        re.escape(name),
    )


def test_weights_that_are_not_finite(say, models, tmp_path):
    tensors = load_file(models["vae"])
    tensors["conv1.weight"].view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "vae.safetensors")
    expect(
        say(*latents(dataset(tmp_path), tmp_path / "vae.safetensors")), "conv1.weight", "finite|NaN"
    )


def test_missing_shard(say, models, ready, tmp_path):
    shutil.copy(models["dit"], tmp_path / "dit-00001-of-00002.safetensors")
    said = say(
        *train(ready, {**models, "dit": tmp_path / "dit-00001-of-00002.safetensors"}, tmp_path)
    )
    expect(said, "dit-00002-of-00002.safetensors")


def test_no_tokenizer_and_no_network(say, models, tmp_path):
    shutil.copy(models["t5"], tmp_path / "t5.safetensors")
    said = say(*text(dataset(tmp_path), tmp_path / "t5.safetensors"))
    expect(said, "tokenizer", "--t5_tokenizer")


# ── caches and training ───────────────────────────────────────────────────────────────────────────


def test_training_before_caching(say, models, tmp_path):
    expect(
        say(*train(dataset(tmp_path), models, tmp_path / "out")), "musubi cache latents", "--vae"
    )


def test_cache_made_with_another_vae(say, models, ready, tmp_path):
    tensors = load_file(models["vae"])
    tensors["conv1.bias"] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    said = say(
        *train(ready, models, tmp_path / "out", "--vae", tmp_path / "other.safetensors"), code=0
    )
    expect(said, "1 ", "vae|VAE")


def test_resolution_changed_after_caching(say, models, ready, tmp_path):
    ready.write_text(
        ready.read_text(encoding="utf-8").replace("[64, 48]", "[96, 64]"), encoding="utf-8"
    )
    expect(say(*train(ready, models, tmp_path / "out")), "stale", "musubi cache latents")


def test_caption_changed_after_caching(say, models, ready, tmp_path):
    (tmp_path / "images" / "a.txt").write_text("a green ball", encoding="utf-8")
    expect(say(*train(ready, models, tmp_path / "out")), "musubi cache text")


def test_latents_that_are_not_finite(say, models, ready, tmp_path):
    (record,) = (tmp_path / "cache").glob("*_0064x0048_wan.safetensors")
    from safetensors import safe_open

    with safe_open(str(record), "pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["musubi"])
    del header["digest"]  # as in records of earlier versions; with it, the record is just damaged
    metadata["musubi"] = json.dumps(header)
    tensors = {n: torch.full_like(t, float("nan")) for n, t in load_file(record).items()}
    save_file(tensors, record, metadata)
    said = say(*train(ready, models, tmp_path / "out"))
    expect(said, "a", "finite|NaN")
    assert not (tmp_path / "out" / "x.safetensors").exists()


def test_patterns_that_match_nothing(say, models, ready, tmp_path):
    more = ("--network_args", "exclude_patterns=['.*']")
    expect(say(*train(ready, models, tmp_path / "out", *more)), "0|no ", "exclude_patterns|pattern")


def test_unknown_optimizer(say, models, ready, tmp_path):
    expect(
        say(*train(ready, models, tmp_path / "out", "--optimizer_type", "adamv")),
        "adamv",
        "(?i)adamw",
    )


def test_unknown_scheduler(say, models, ready, tmp_path):
    expect(
        say(*train(ready, models, tmp_path / "out", "--lr_scheduler", "cosin")), "cosin", "cosine"
    )


def test_resuming_nothing(say, models, ready, tmp_path):
    expect(
        say(*train(ready, models, tmp_path / "out", "--resume", tmp_path / "no-state")), "no-state"
    )


def test_lora_of_another_architecture(say, models, ready, tmp_path):
    path = tmp_path / "hv.safetensors"
    pair = {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(2, 8),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.zeros(8, 2),
        "lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(2.0),
    }
    save_file(pair, path, {"ss_base_model_version": "hunyuan_video"})
    said = say(*train(ready, models, tmp_path / "out", "--network_weights", path))
    expect(said, "hv.safetensors", "hunyuan_video")


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_output_folder_that_is_a_file(say, models, ready, tmp_path):
    (tmp_path / "out").write_text("")
    expect(say(*train(ready, models, tmp_path / "out")), "out", "file|folder|directory")


def test_disk_full_while_saving(say, models, ready, tmp_path, monkeypatch):
    import errno

    real = os.fsync

    def full(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and os.fstat(descriptor).st_size > 2**14:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    said = say(*train(ready, models, tmp_path / "out"))
    expect(said, "x.safetensors", "(?i)disk|space")
    assert not list((tmp_path / "out").glob("*.safetensors*"))


# ── generating and merging ────────────────────────────────────────────────────────────────────────


def test_size_that_does_not_fit_the_model(say, models, tmp_path):
    expect(say(*generate(models, tmp_path, "--video_size", 50, 64)), "50", "48")


def test_nothing_to_generate(say, models, tmp_path):
    words = generate(models, tmp_path)
    at = words.index("--prompt")
    expect(say(*words[:at], *words[at + 2 :]), "--prompt")


def test_batch_file_and_interactive_at_once(say, models, tmp_path):
    (tmp_path / "p.txt").write_text("a ball\n")
    expect(
        say(*generate(models, tmp_path, "--from_file", tmp_path / "p.txt", "--interactive")),
        "--from_file",
        "--interactive",
    )


def test_more_multipliers_than_loras(say, models, tmp_path):
    path = tmp_path / "l.safetensors"
    save_file({"lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.zeros(4, 8)}, path)
    more = ("--lora_weight", path, "--lora_multiplier", 1, 0.5)
    expect(say(*generate(models, tmp_path, *more)), "--lora_multiplier")


def test_lora_that_is_not_finite(say, models, tmp_path):
    dim = load_file(models["dit"])["blocks.0.self_attn.q.weight"].shape[0]
    name = "lora_unet_blocks_0_self_attn_q"
    path = tmp_path / "l.safetensors"
    tensors = {
        f"{name}.lora_down.weight": torch.full((2, dim), float("inf")),
        f"{name}.lora_up.weight": torch.zeros(dim, 2),
    }
    save_file(tensors, path)
    expect(say(*generate(models, tmp_path, "--lora_weight", path)), "l.safetensors", "finite|Inf")


def test_lora_that_is_no_lora(say, models, tmp_path):
    expect(
        say(*generate(models, tmp_path, "--lora_weight", models["vae"])), "vae.safetensors", "LoRA"
    )


def test_attention_package_that_is_not_installed(say, models, tmp_path):
    expect(say(*generate(models, tmp_path, "--attn_mode", "sageattn")), "sage", "pip install")


def test_latent_of_another_model(say, models, tmp_path):
    save_file({"latent": torch.zeros(4, 2, 6, 8)}, tmp_path / "l.safetensors")
    said = say(
        "generate",
        "--arch",
        "wan",
        "--vae",
        models["vae"],
        "--latent_path",
        tmp_path / "l.safetensors",
        "--save_path",
        tmp_path,
    )
    expect(said, "l.safetensors", "16", "4")


def test_merging_a_truncated_lora(say, models, tmp_path):
    path = tmp_path / "l.safetensors"
    path.write_bytes(models["dit"].read_bytes()[:500])
    more = ("--lora_weight", path, "--save_merged_model", tmp_path / "m.safetensors")
    expect(say("lora", "merge", "--arch", "wan", "--dit", models["dit"], *more), "l.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_info_of_something_else(say, models):
    expect(say("lora", "info", models["vae"]), "vae.safetensors", "LoRA")
