"""The commands that FramePack's users of musubi-tuner know, run with only the script's name replaced.

Each is written as it was typed, at full size; what makes it a toy is in `TOY`. They run in this
process, in the order of a user's day: cache, train, generate; then the same with single frames.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.cli import main
from musubi.generate.pipeline import Pipeline
from musubi.testing import media, twins

SCRIPTS = {
    "fpack_cache_latents.py": "cache latents --arch framepack",
    "fpack_cache_text_encoder_outputs.py": "cache text --arch framepack",
    "fpack_train_network.py": "train --arch framepack",
    "fpack_generate_video.py": "generate --arch framepack",
    "lora_post_hoc_ema.py": "lora ema",
}
TOY = (
    ("--video_size 512 768", "--video_size 32 48 --latent_window_size 1"),
    ("--video_size 832 480", "--video_size 48 32"),
    ("--video_seconds 5", "--video_seconds 0.3"),
    ("--infer_steps 25", "--infer_steps 2"),
    ("--max_train_epochs 16", "--max_train_epochs 1"),
    ("--blocks_to_swap 36", "--blocks_to_swap 1"),
)
PLACES = "--vae_spatial_tile_sample_min_size 128 --vae_chunk_size 32 "


def in_three(path, folder):
    """The file as the released sets are: three parts, and an index that says what is where."""
    state = load_file(path)
    folder.mkdir(parents=True)
    index = {}
    for i in range(3):
        file = f"diffusion_pytorch_model-{i + 1:05}-of-00003.safetensors"
        part = {name: t.bfloat16() for name, t in list(state.items())[i::3]}
        save_file(part, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(content))
    return folder / "diffusion_pytorch_model-00001-of-00003.safetensors"


class World:
    """The folders that the commands name."""

    def __init__(self, folder) -> None:
        architecture = registry.find("framepack")
        self.folder = folder
        # Enough blocks of both kinds for some of each to move.
        numbers = {"dit": {"single_depth": 4}}
        models = {
            c.name: twins.write_twin(
                replace(c, tiny={**c.tiny, **numbers.get(c.name, {})}), folder / "models" / c.name
            )
            for c in architecture.components
        }
        kijai = folder / "FramePackI2V_HY_bf16.safetensors"
        save_file({n: t.bfloat16() for n, t in load_file(models["dit"]).items()}, kijai)
        eight = folder / "FramePackI2V_HY_fp8_e4m3fn.safetensors"
        save_file(
            {
                n: t.to(torch.float8_e4m3fn if t.ndim == 2 else torch.bfloat16)
                for n, t in load_file(models["dit"]).items()
            },
            eight,
        )
        data = folder / "data"
        for i, colour in enumerate(("red", "blue")):
            pictures = media.clip(48, 32, 14, colour=colour)
            media.write_video(data / "videos" / f"{colour}.mp4", pictures, fps=30)
            (data / "videos" / f"{colour}.txt").write_text(f"a {colour} ball", encoding="utf-8")
            media.write_image(data / "images" / f"{colour}.png", pictures[4])
            (data / "images" / f"{colour}.txt").write_text(f"a {colour} ball", encoding="utf-8")
            alpha = np.full((32, 48, 1), 255, np.uint8)
            alpha[:, :24] = 0
            for n in range(2):
                picture = np.concatenate([pictures[n + i], alpha], axis=-1)
                media.write_image(data / "controls" / f"{colour}_{n}.png", picture)
        general = (
            '[general]\nresolution = [48, 32]\ncaption_extension = ".txt"\nenable_bucket = true\n'
        )
        videos = (
            f'{general}batch_size = 2\n[[datasets]]\nvideo_directory = "{data.as_posix()}/videos"\n'
            f'cache_directory = "{data.as_posix()}/video_cache"\nframe_extraction = "full"\n'
            "source_fps = 30.0\nfp_latent_window_size = 1\n"
        )
        images = (
            f'{general}[[datasets]]\nimage_directory = "{data.as_posix()}/images"\n'
            f'control_directory = "{data.as_posix()}/controls"\n'
            f'cache_directory = "{data.as_posix()}/image_cache"\n'
            "fp_latent_window_size = 9\nfp_1f_clean_indices = [0, 10]\nfp_1f_target_index = 1\n"
            "fp_1f_no_post = true\n"
        )
        (folder / "video.toml").write_text(videos, encoding="utf-8")
        (folder / "image.toml").write_text(images, encoding="utf-8")
        self.places = {
            "toml": folder / "video.toml",
            "images": folder / "image.toml",
            "dit": in_three(models["dit"], folder / "FramePackI2V_HY"),
            "folder_dit": folder / "FramePackI2V_HY",
            "index": folder / "FramePackI2V_HY" / "diffusion_pytorch_model.safetensors.index.json",
            "kijai": kijai,
            "eight": eight,
            "vae": models["vae"],
            "llm": models["text_encoder1"],
            "clip": models["text_encoder2"],
            "siglip": models["image_encoder"],
            "out": folder / "out",
            "lora": folder / "out" / "fp.safetensors",
            "one_lora": folder / "out" / "one.safetensors",
            "save": folder / "save",
            "start": data / "images" / "red.png",
            "end": data / "images" / "blue.png",
            "clothes": data / "controls" / "blue_0.png",
            "mask": folder / "mask.png",
            "prompts": folder / "prompts.txt",
            "one_prompts": folder / "one_prompts.txt",
            "batch": folder / "batch.txt",
            "folder": folder,
        }
        mask = np.zeros((64, 96), np.uint8)
        mask[:, 48:] = 255
        Image.fromarray(mask).save(self.places["mask"])
        p = self.places
        p["prompts"].write_text(
            f"a cat --w 48 --h 32 --f 5 --d 1 --s 2 --g 10 --i {p['start']}\n", encoding="utf-8"
        )
        p["one_prompts"].write_text(
            f"a cat --w 48 --h 32 --f 1 --d 1 --s 2 --i {p['start']} --ci {p['start']} "
            f"--ci {p['clothes']} --of no_2x,no_4x,target_index=1,control_index=0;10\n",
            encoding="utf-8",
        )
        p["batch"].write_text(
            f"# two videos\na cat --w 48 --h 32 --f 0.2 --d 1 --s 2 --i {p['start']}\n"
            f"a dog --w 48 --h 32 --vs 2 --d 2 --s 3 --g 2 --n bad --i {p['end']} --mcrr 0.1 --mct 9 --mck 1\n",
            encoding="utf-8",
        )

    def words(self, command: str) -> list[str]:
        """The words behind `musubi`, at toy size."""
        for full, toy in TOY:
            command = command.replace(full, toy)
        script = re.search(r"\b\w+\.py\b", command)
        assert script is not None
        old = [w.format(**self.places) for w in shlex.split(command[script.end() :])]
        if "--vae" in old and "--vae_dtype" not in old:
            old += ["--vae_dtype", "float32"]  # a CPU takes minutes for float16
        return [*SCRIPTS[script[0]].split(), *old]

    def run(self, command: str) -> None:
        """Run it; it must end well."""
        with pytest.raises(SystemExit) as end:
            main(self.words(command))
        assert (end.value.code or 0) == 0, command

    def made(self, command: str) -> list:
        """Run it, and find the files that are new where it saves."""
        before = set(self.places["save"].rglob("*"))
        self.run(command)
        return sorted(p for p in set(self.places["save"].rglob("*")) - before if p.is_file())


NETWORKS = (
    "--dit {dit} --vae {vae} --text_encoder1 {llm} --text_encoder2 {clip} --image_encoder {siglip} "
)
CACHE = (
    "python fpack_cache_latents.py --dataset_config {toml} --vae {vae} --image_encoder {siglip} "
    "--vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128"
)
TEXT = (
    "python fpack_cache_text_encoder_outputs.py --dataset_config {toml} --text_encoder1 {llm} "
    "--text_encoder2 {clip} --batch_size 16"
)
TRAIN = (
    "accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 fpack_train_network.py "
    + NETWORKS
    + "--dataset_config {toml} --sdpa --mixed_precision bf16 "
    "--optimizer_type adamw8bit --learning_rate 2e-4 --gradient_checkpointing "
    "--timestep_sampling shift --weighting_scheme none --discrete_flow_shift 3.0 "
    "--max_data_loader_n_workers 2 --persistent_data_loader_workers "
    "--network_module networks.lora_framepack --network_dim 32 "
    "--max_train_epochs 16 --save_every_n_epochs 1 --seed 42 "
    "--output_dir {out} --output_name fp"
)
GENERATE = (
    "python fpack_generate_video.py " + NETWORKS + "--image_path {start} "
    '--prompt "A cat walks on the grass, realistic style." '
    "--video_size 512 768 --video_seconds 5 --fps 30 --infer_steps 25 "
    "--attn_mode sdpa --vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128 "
    "--save_path {save} --output_type both --seed 1234"
)
ONE = (
    "python fpack_generate_video.py --video_size 832 480 --infer_steps 25 "
    '--prompt "A cat walks on the grass, realistic style." --save_path {save} '
    "--output_type latent_images "
    + NETWORKS
    + "--attn_mode sdpa --vae_spatial_tile_sample_min_size 128 --vae_chunk_size 32 "
    "--image_path {start} --one_frame_inference default --seed 1234"
)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("empty hub")))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def cached(world):
    world.run(CACHE)
    world.run(TEXT)


@pytest.fixture(scope="module")
def trained(world, cached):
    world.run(TRAIN)


@pytest.fixture(scope="module")
def one_cached(world):
    world.run(
        f"{CACHE.replace('{toml}', '{images}')} --one_frame --one_frame_no_2x --one_frame_no_4x"
    )
    world.run(TEXT.replace("{toml}", "{images}"))


def held(path):
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        return {k: tuple(file.get_slice(k).get_shape()) for k in names}, file.metadata()


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def test_records_have_the_old_names_and_shapes(world, cached):
    folder = world.folder / "data" / "video_cache"
    names = {p.name for p in folder.glob("red*")}
    assert names == {
        "red_00000-013-0000_0048x0032_fp.safetensors",
        "red_00000-013-0001_0048x0032_fp.safetensors",
        "red_00000-013-0002_0048x0032_fp.safetensors",
        "red_fp_te.safetensors",
    }
    shapes, facts = held(folder / "red_00000-013-0001_0048x0032_fp.safetensors")
    assert shapes == {
        "latents_1x4x6_float32": (16, 1, 4, 6),
        "latents_clean_1x4x6_float32": (16, 2, 4, 6),
        "latents_clean_2x_1x4x6_float32": (16, 2, 4, 6),
        "latents_clean_4x_1x4x6_float32": (16, 16, 4, 6),
        "latent_indices_int64": (1,),
        "clean_latent_indices_int64": (2,),
        "clean_latent_2x_indices_int64": (2,),
        "clean_latent_4x_indices_int64": (16,),
        "image_embeddings_float16": (36, 16),
    }
    assert facts["architecture"] == "framepack"
    assert (facts["width"], facts["height"], facts["format_version"]) == ("48", "32", "1.0.1")
    shapes, facts = held(folder / "red_fp_te.safetensors")
    assert shapes == {
        "llama_vec_float16": (512, 32),
        "llama_attention_mask": (512,),
        "clip_l_pooler_float16": (16,),
    }
    assert load_file(folder / "red_fp_te.safetensors")["llama_attention_mask"].dtype == torch.bool
    assert facts["caption1"] == "a red ball"


@pytest.mark.parametrize("more", ["--f1", "--f1 --skip_existing", "--skip_existing --keep_cache"])
def test_caching_latents(world, cached, more):
    world.run(f"{CACHE} {more}")


def test_caching_text_in_8_bits(world, cached):
    world.run(f"{TEXT} --fp8_llm")


def test_training_writes_the_lora_that_it_names(world, trained):
    tensors, facts = load_file(world.places["lora"]), held(world.places["lora"])[1]
    for name in (
        "transformer_blocks_0_attn_to_out_0",
        "transformer_blocks_1_ff_context_net_0_proj",
        "single_transformer_blocks_3_proj_mlp",
    ):
        assert f"lora_unet_{name}.lora_down.weight" in tensors
    assert not any("norm" in name for name in tensors)
    # 12 layers of each double block and 5 of each single one, as the old tool had them
    assert len(tensors) == 3 * (2 * 12 + 4 * 5)
    assert facts["ss_base_model_version"] == "framepack"
    assert facts["modelspec.architecture"] == "framepack/lora"


@pytest.mark.parametrize(
    "more",
    [
        "--fp8_base --fp8_scaled --blocks_to_swap 36 --split_attn --dit {kijai}",
        "--f1 --latent_window_size 1 --bulk_decode --sample_prompts {prompts} --sample_at_first "
        "--vae_spatial_tile_sample_min_size 128 --vae_chunk_size 32 --fp8_llm --dit {index}",
        "--latent_window_size 1 --sample_prompts {prompts} --sample_every_n_epochs 1 --dit {eight}",
    ],
)
def test_training(world, trained, more):
    world.run(f"{TRAIN} {more} --output_name more")


def test_records_that_the_old_tool_made_are_trained_on(world, trained):
    folder = world.folder / "data" / "video_cache"
    for path in folder.glob("*_fp*.safetensors"):
        facts = {k: v for k, v in held(path)[1].items() if k != "musubi"}
        # Its latents are in half precision.
        tensors = {
            name.replace("float32", "float16"): t.half() if t.dtype == torch.float32 else t
            for name, t in load_file(path).items()
        }
        save_file(tensors, path, facts)
    world.run(f"{TRAIN} --output_name old")
    assert (world.places["out"] / "old.safetensors").is_file()


def frames_of(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize(
    ("more", "frames"),
    [
        ("--lora_multiplier 1.0 --lora_weight {lora} --fp8_scaled --fp8", 9),
        ("--f1 --bulk_decode --dit {folder_dit} --blocks_to_swap 36 --fp8_llm", 9),
        (
            "--video_sections 3 --end_image_path {end} --latent_paddings 1 --dit {eight} --fps 16",
            13,
        ),
        (
            '--video_sections 3 --prompt "0:a cat;;;-1:it sleeps" '
            '--image_path "0:{start};;;-1:{end}" --guidance_scale 2 --guidance_rescale 0.7 '
            '--negative_prompt bad --custom_system_prompt "Describe the video."',
            13,
        ),
        (
            "--embedded_cfg_scale 6 --flow_shift 3 --rope_scaling_timestep_threshold 800 "
            "--rope_scaling_factor 0.5 --magcache_mag_ratios 0 --magcache_retention_ratio 0.2 "
            "--magcache_threshold 0.24 --magcache_k 6 --sample_solver unipc --no_metadata",
            9,
        ),
        ("--magcache_calibration --infer_steps 4", 9),
    ],
)
def test_generating(world, trained, more, frames):
    made = world.made(f"{GENERATE} {more}")
    assert [p.suffix for p in made] == [".mp4", ".safetensors"]
    assert frames_of(made[0]) == frames
    assert load_file(made[1])["latent"].shape == (16, (frames - 1) // 4 + 1, 4, 6)
    keys = set((held(made[1])[1] or {}).keys())
    if "--no_metadata" in more:
        assert not {"prompt", "seeds"} & keys
    else:
        assert {"seeds", "embedded_cfg_scale", "guidance_rescale", "latent_window_size"} <= keys


def test_without_a_start_image(world, trained):
    made = world.made(GENERATE.replace("--image_path {start} ", ""))
    assert frames_of(made[0]) == 9


def test_latents_first_and_frames_later(world, trained):
    (latent,) = world.made(f"{GENERATE} --output_type latent")
    later = world.made(f"{GENERATE} --output_type video --latent_path {shlex.quote(str(latent))}")
    assert frames_of(later[0]) == 9


def test_a_batch_of_prompts(world, trained):
    batch = re.sub(r'--prompt "[^"]*" |--image_path \S+ |--seed 1234', "", GENERATE)
    made = world.made(f"{batch} --from_file {{batch}} --output_type video")
    assert [frames_of(p) for p in made] == [9, 9]


@pytest.mark.parametrize("mixed", [False, True])
def test_a_batch_of_single_frames(world, trained, capfd, mixed):
    """Lines with --of are single frames, whether or not the command says so; a mixture is refused."""
    asking = re.sub(r'--prompt "[^"]*" |--image_path \S+ |--seed 1234', "", GENERATE)
    line = (
        f"a cat --w 48 --h 32 --d 1 --s 2 --i {world.places['start']} --ci {world.places['start']}"
    )
    path = world.folder / "frames.txt"
    path.write_text(
        f"{line} --of target_index=1,control_index=0\n{line} --of no_post,target_index=9\n"
        + ("a cat --w 48 --h 32 --f 0.2 --s 2\n" if mixed else ""),
        encoding="utf-8",
    )
    command = f"{asking} --from_file {path} --output_type images"
    if mixed:
        with pytest.raises(SystemExit) as end:
            main(world.words(command))
        said = " ".join(capfd.readouterr().err.split())
        assert end.value.code == 2
        assert "A prompt with --of is for the task one_frame" in said
        assert "Give --one_frame or --one_frame_inference" in said
        return
    made = world.made(command)
    assert len(made) == 2 and {path.suffix for path in made} == {".png"}
    first, second = (np.asarray(Image.open(path)) for path in made)
    assert not np.array_equal(first, second)


def test_prompts_one_after_the_other(world, trained, monkeypatch):
    lines = f"a cat --w 48 --h 32 --f 0.2 --s 2 --i {world.places['start']}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines + lines))
    asking = re.sub(r'--prompt "[^"]*" |--image_path \S+ |--seed 1234', "", GENERATE)
    assert len(world.made(f"{asking} --interactive --output_type video")) == 2


def test_a_video_that_was_stopped_is_gone_on_with(world, trained, monkeypatch):
    command = f"{GENERATE} --video_sections 3 --save_path {{folder}}/stopped"
    places = world.folder / "stopped"
    solve, calls = Pipeline._solve, []

    def stopped(self, *given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solve(self, *given)

    monkeypatch.setattr(Pipeline, "_solve", stopped)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(world.words(command))
    names = sorted(p.name.partition("_1234_")[2] for p in places.iterdir())
    assert names == [
        "section000.mp4",
        "section000_latent.safetensors",
        "section001.mp4",
        "section001_latent.safetensors",
    ]
    world.run(f"{command} --continue")
    assert len(calls) == 4  # only the last section
    (latent,) = places.glob("*_latent.safetensors")
    assert {p.suffix for p in places.iterdir()} == {".mp4", ".safetensors"}
    whole = world.made(f"{GENERATE} --video_sections 3")
    assert torch.equal(load_file(latent)["latent"], load_file(whole[1])["latent"])


# single frames


def test_a_record_of_a_single_frame(world, one_cached):
    folder = world.folder / "data" / "image_cache"
    shapes, _ = held(folder / "red_0048x0032_fp.safetensors")
    assert shapes == {
        "latents_1x4x6_float32": (16, 1, 4, 6),
        "latents_clean_1x4x6_float32": (16, 2, 4, 6),
        "latent_indices_int64": (1,),
        "clean_latent_indices_int64": (2,),
        "image_embeddings_float16": (36, 16),
    }
    record = load_file(folder / "red_0048x0032_fp.safetensors")
    assert record["clean_latent_indices_int64"].tolist() == [0, 10]
    assert record["latent_indices_int64"].tolist() == [1]
    shown = record["latents_clean_1x4x6_float32"].abs()
    assert shown[..., 0].max() < 0.01 < 0.1 < shown[..., -1].max()  # what is transparent is hidden


def test_training_single_frames(world, one_cached):
    words = TRAIN.replace("{toml}", "{images}")
    world.run(
        f"{words} --one_frame --output_name one --sample_prompts {{one_prompts}} --sample_at_first"
    )
    (preview,) = (world.places["out"] / "sample").glob("one_*.png")
    assert size_of(preview) == (48, 32)


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--control_image_path {start}",
        "--control_image_path {start} --one_frame_inference no_2x,no_4x,target_index=1 "
        "--lora_weight {lora}",
        "--control_image_path {start} {clothes} --one_frame_inference "
        '"target_index=1,control_index=0;10,no_post"',
        "--control_image_path {start} {clothes} --control_image_mask_path {mask} {mask} "
        '--one_frame_inference "no_2x,no_4x,control_index=0;10"',
        "--control_image_path {start} --one_frame_auto_resize --video_size 64 64 --guidance_scale 2",
    ],
)
def test_a_single_frame(world, trained, more):
    made = world.made(f"{ONE} {more}")
    assert sorted(p.suffix for p in made) == [".png", ".safetensors"]
    size = size_of(next(p for p in made if p.suffix == ".png"))
    assert size == ((64, 48) if "auto_resize" in more else (32, 48))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            '--control_image_path {start} --one_frame_inference "control_index=0;10"',
            "2 frame indices for 1 control",
        ),
        ("--one_frame_inference no_8x", "no_8x"),
        ("--end_image_path {end}", "end_image_path means nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused(world, more, says, capfd):
    with pytest.raises(SystemExit) as end:
        main(world.words(f"{ONE} {more}"))
    assert end.value.code == 2
    assert says in capfd.readouterr().err.replace("\n", " ")
