"""Caches of musubi-tuner, written out by hand, train as they are: no cache command, no encoder."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.cli import main
from musubi.testing import media, twins

HALF = torch.float16


def noise(*shape, dtype=HALF):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def write(path, tensors, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {**metadata, "format_version": "1.0.1"})


def hunyuan_video(cache, frames):
    """A clip from frame 5 on, counted as the file has them."""
    latents = noise(16, (frames - 1) // 4 + 1, 4, 6)
    name = f"cat_00005-{frames:03d}_0048x0032_hv.safetensors"
    size = {"width": "48", "height": "32", "frame_count": str(frames)}
    key = f"latents_{latents.shape[1]}x4x6_float16"
    write(cache / name, {key: latents}, architecture="hunyuan_video", **size)
    numbers = registry.find("hunyuan_video").dit.tiny
    words = {
        "llm_float16": noise(256, numbers["text_dim"]),
        "llm_mask": (torch.arange(256) < 9).long(),
        "clipL_float16": noise(numbers["pooled_dim"]),
        "clipL_mask": (torch.arange(77) < 5).long(),
    }
    about = {"architecture": "hunyuan_video", "caption1": "a cat"}
    write(cache / "cat_hv_te.safetensors", words, **about)


def framepack_text(cache, numbers):
    words = {
        "llama_vec_float16": noise(512, numbers["text_dim"]),
        "llama_attention_mask": torch.arange(512) < 9,
        "clip_l_pooler_float16": noise(numbers["pooled_dim"]),
    }
    write(cache / "cat_fp_te.safetensors", words, architecture="framepack", caption1="a cat")


def framepack(cache, *, f1):
    """Two sections of nine latent frames, in the order of time."""
    numbers = registry.find("framepack").dit.tiny
    framepack_text(cache, numbers)
    for section in range(2):
        pad = 1 - section
        if f1:
            axis = torch.arange(29)
            start, far, near, last, target = axis.split([1, 16, 2, 1, 9])
        else:
            axis = torch.arange(1 + 9 * pad + 9 + 1 + 2 + 16)
            start, _, target, last, near, far = axis.split([1, 9 * pad, 9, 1, 2, 16])
        record = {
            "latents_9x4x6_float16": noise(16, 9, 4, 6),
            "latents_clean_9x4x6_float16": noise(16, 2, 4, 6),
            "latents_clean_2x_9x4x6_float16": noise(16, 2, 4, 6),
            "latents_clean_4x_9x4x6_float16": noise(16, 16, 4, 6),
            "latent_indices_int64": target.clone(),
            "clean_latent_indices_int64": torch.cat([start, last]),
            "clean_latent_2x_indices_int64": near.clone(),
            "clean_latent_4x_indices_int64": far.clone(),
            "image_embeddings_float16": noise(729, numbers["image_dim"]),
        }
        name = f"cat_00000-073-{section:04d}_0048x0032_fp.safetensors"
        size = {"width": "48", "height": "32", "frame_count": "73"}
        write(cache / name, record, architecture="framepack", **size)


def framepack_one_frame(cache):
    numbers = registry.find("framepack").dit.tiny
    framepack_text(cache, numbers)
    record = {
        "latents_1x4x6_float16": noise(16, 1, 4, 6),
        "latents_clean_1x4x6_float16": noise(16, 2, 4, 6),
        "latent_indices_int64": torch.tensor([5]),
        "clean_latent_indices_int64": torch.tensor([0, 10]),
        "clean_latent_2x_indices_int64": torch.tensor([11, 12]),
        "clean_latent_4x_indices_int64": torch.arange(13, 29),
        "image_embeddings_float16": noise(729, numbers["image_dim"]),
    }
    size = {"width": "48", "height": "32"}
    write(cache / "cat_0048x0032_fp.safetensors", record, architecture="framepack", **size)


CASES = {
    "hunyuan_video t2v": (
        lambda c: hunyuan_video(c, 5),
        "target_frames = [5]\nframe_extraction = 'chunk'\n",
    ),
    "framepack i2v": (lambda c: framepack(c, f1=False), "frame_extraction = 'full'\n"),
    "framepack i2v f1": (lambda c: framepack(c, f1=True), "frame_extraction = 'full'\n"),
    "framepack one_frame": (
        framepack_one_frame,
        "fp_1f_clean_indices = [0]\nfp_1f_target_index = 5\n",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gone", [False, True])
def test_a_cache_trains_without_an_encoder(case, gone, tmp_path, capsys):
    name, task, *_ = case.split()
    write_cache, keys = CASES[case]
    cache, sources = tmp_path / "cache", tmp_path / "sources"
    write_cache(cache)
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    one = task == "one_frame"
    kind = "image" if one else "video"
    if not gone:
        picture = media.clip(48, 32, 150 if name == "framepack" else 24)
        if one:
            media.write_image(sources / "cat.png", picture[0])
            media.write_image(tmp_path / "controls" / "cat.png", picture[0])
        else:
            media.write_video(sources / "cat.mp4", picture, fps=60)  # not the model's rate
        (sources / "cat.txt").write_text("a cat", encoding="utf-8")
    if one:
        keys += f"control_directory = '{(tmp_path / 'controls').as_posix()}'\n"
    (tmp_path / "data.toml").write_text(
        "[general]\nresolution = [48, 32]\ncaption_extension = '.txt'\n"
        f"[[datasets]]\n{kind}_directory = '{sources.as_posix()}'\n"
        f"cache_directory = '{cache.as_posix()}'\n{keys}",
        encoding="utf-8",
    )
    architecture = registry.find(name)
    numbers = twins.numbers_for(architecture.task(task))
    dit = twins.write_twin(architecture.dit, tmp_path / "dit", numbers=numbers)
    run(
        f"train --arch {name} --dataset_config {tmp_path / 'data.toml'} --task {task} --dit {dit} "
        "--max_train_steps 1 --learning_rate 1e-4 --optimizer_type adamw --sdpa --network_dim 2 "
        f"--output_dir {tmp_path / 'out'} --output_name old"
    )
    out = " ".join("".join(capsys.readouterr()).split())
    assert f"{len(before)} records of musubi-tuner are used as they are." in out
    assert "cannot be checked" in out and "stale" not in out
    assert load_file(next((tmp_path / "out").glob("old*.safetensors")))
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before
    if gone:
        return
    run(f"cache check --arch {name} --dataset_config {tmp_path / 'data.toml'} --task {task}")
    assert "stale" not in "".join(capsys.readouterr())


def run(command):
    with pytest.raises(SystemExit) as end:
        main(command.split())
    assert (end.value.code or 0) == 0, command
