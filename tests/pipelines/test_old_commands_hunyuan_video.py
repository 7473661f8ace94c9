"""The commands that HunyuanVideo's users of musubi-tuner know, run with only the script's name replaced.

Each is written as it was typed, at full size; what makes it a toy is in `TOY`. They run in this
process, in the order of a user's day: cache, train, merge, generate, convert.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from musubi import registry
from musubi.cli import main
from musubi.testing import media, twins

SCRIPTS = {
    "cache_latents.py": "cache latents --arch hunyuan_video",
    "cache_text_encoder_outputs.py": "cache text --arch hunyuan_video",
    "hv_train_network.py": "train --arch hunyuan_video",
    "hv_train.py": "train --arch hunyuan_video --full",
    "hv_generate_video.py": "generate --arch hunyuan_video",
    "merge_lora.py": "lora merge --arch hunyuan_video",
    "convert_lora.py": "lora convert",
    "lora_post_hoc_ema.py": "lora ema",
}
TOY = (
    ("--video_size 544 960", "--video_size 48 64"),
    ("--infer_steps 30", "--infer_steps 2"),
    ("--max_train_epochs 16", "--max_train_epochs 1"),
    ("--sample_every_n_steps 1000", "--sample_every_n_steps 4"),
    ("--dynamo_backend INDUCTOR", "--dynamo_backend EAGER"),  # a CPU would compile for minutes
    ("--blocks_to_swap 36", "--blocks_to_swap 2"),
    ("--blocks_to_swap 38", "--blocks_to_swap 2"),
)
DEPTHS = {"double_depth": 3, "single_depth": 6}  # enough to move some blocks of both kinds


def compiling(more):
    """Options of a test that compiles: torch's compiler warns about torch."""
    return pytest.param(more, marks=pytest.mark.filterwarnings("ignore"))


class World:
    """The folders that the commands name."""

    def __init__(self, folder: Path) -> None:
        architecture = registry.find("hunyuan_video")
        self.folder = folder
        ckpts = folder / "ckpts"
        dit = replace(architecture.dit, tiny={**architecture.dit.tiny, **DEPTHS})
        for component in (dit, architecture.component("vae")):
            twins.write_twin(component, ckpts, suffix=".pt")
        state = torch.load(ckpts / "dit.pt", weights_only=True)
        torch.save({"module": state}, ckpts / "mp_rank_00_model_states.pt")
        (ckpts / "vae.pt").rename(ckpts / "pytorch_model.pt")
        for name, place in (("text_encoder1", "text_encoder"), ("text_encoder2", "text_encoder_2")):
            made = twins.write_twin(architecture.component(name), ckpts / place)
            made.rename(made.parent / "model.safetensors")
        image = replace(dit, tiny={**dit.tiny, "in_channels": 32})
        twins.write_twin(image, ckpts / "i2v")
        self.places = {
            "toml": media.write_dataset(folder / "data", images=1, videos=1),
            "dit": ckpts / "mp_rank_00_model_states.pt",
            "i2v": ckpts / "i2v" / "dit.safetensors",
            "vae": ckpts / "pytorch_model.pt",
            "llm": ckpts / "text_encoder",
            "clip": ckpts / "text_encoder_2",
            "out": folder / "out",
            "lora": folder / "out" / "name-of-lora.safetensors",
            "save": folder / "save",
            "prompts": folder / "prompt_file.txt",
            "video": folder / "data" / "videos" / "red_0.mp4",
            "image": folder / "data" / "images" / "red_0.png",
            "frames": folder / "frames",
            "config": folder / "config.toml",
            "folder": folder,
        }
        self.places["prompts"].write_text(
            "# prompt 1: for generating a cat video\n"
            "A cat walks on the grass, realistic style. --w 64 --h 48 --f 5 --d 1 --s 2 --g 6 --fs 7\n",
            encoding="utf-8",
        )
        for i, picture in enumerate(media.clip(64, 48, 5)):
            media.write_image(self.places["frames"] / f"{i:04}.png", picture)

    def words(self, command: str) -> list[str]:
        """The words behind `musubi`, at toy size."""
        for full, toy in TOY:
            command = command.replace(full, toy)
        script = re.search(r"\b\w+\.py\b", command)
        assert script is not None
        new = SCRIPTS[script[0]].split()
        old = [w.format(**self.places) for w in shlex.split(command[script.end() :])]
        kept = list(old)
        if "--vae" in kept and "--vae_dtype" not in kept:
            kept += ["--vae_dtype", "float32"]  # a CPU takes minutes for float16
        return [*new, *kept]

    def run(self, command: str) -> None:
        """Run it; it must end well."""
        with pytest.raises(SystemExit) as end:
            main(self.words(command))
        assert (end.value.code or 0) == 0, command


CACHE_LATENTS = (
    "python cache_latents.py --dataset_config {toml} --vae {vae} --vae_chunk_size 32 --vae_tiling"
)
CACHE_TEXT = (
    "python cache_text_encoder_outputs.py --dataset_config {toml} --text_encoder1 {llm} "
    "--text_encoder2 {clip} --batch_size 16"
)
TRAIN = (
    "accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 hv_train_network.py "
    "--dit {dit} --dataset_config {toml} --sdpa --mixed_precision bf16 --fp8_base "
    "--optimizer_type adamw8bit --learning_rate 2e-4 --gradient_checkpointing "
    "--max_data_loader_n_workers 2 --persistent_data_loader_workers "
    "--network_module networks.lora --network_dim 32 "
    "--timestep_sampling shift --discrete_flow_shift 7.0 "
    "--max_train_epochs 16 --save_every_n_epochs 1 --seed 42 "
    "--output_dir {out} --output_name name-of-lora"
)
MERGE = (
    "python merge_lora.py --dit {dit} --lora_weight {lora} "
    "--save_merged_model {folder}/merged.safetensors --device cpu --lora_multiplier 1.0"
)
GENERATE = (
    "python hv_generate_video.py --fp8 --video_size 544 960 --video_length 5 --infer_steps 30 "
    '--prompt "A cat walks on the grass, realistic style." --save_path {save} --output_type both '
    "--dit {dit} --attn_mode sdpa --split_attn --vae {vae} "
    "--vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128 "
    "--text_encoder1 {llm} --text_encoder2 {clip} "
    "--seed 1234 --lora_multiplier 1.0 --lora_weight {lora}"
)
SKYREELS = (
    ' --guidance_scale 6.0 --embedded_cfg_scale 1.0 --negative_prompt "Aerial view, aerial view, '
    "overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, bad eyes, "
    'bad limbs, distortion" --split_uncond'
)
SAMPLES = (
    " --vae {vae} --vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128 --text_encoder1 {llm} "
    "--text_encoder2 {clip} --sample_prompts {prompts} --sample_every_n_epochs 1 "
    "--sample_every_n_steps 1000 --sample_at_first"
)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("empty hub")))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("old") / "path to")


@pytest.fixture(scope="module")
def cached(world):
    world.run(CACHE_LATENTS)
    world.run(CACHE_TEXT)


@pytest.fixture(scope="module")
def trained(world, cached):
    world.run(TRAIN)


@pytest.mark.parametrize(
    "more",
    [
        "--vae_spatial_tile_sample_min_size 128 --batch_size 1",
        "--skip_existing --keep_cache --num_workers 1 --device cpu --vae_dtype float32",
        "--debug_mode video",
        "--debug_mode console --console_width 40 --console_num_images 1",
    ],
)
def test_caching_latents(world, cached, more):
    world.run(f"{CACHE_LATENTS} {more}")


@pytest.mark.parametrize(
    "more", ["--fp8_llm", "--skip_existing --keep_cache --text_encoder_dtype bfloat16"]
)
def test_caching_text(world, cached, more):
    world.run(f"{CACHE_TEXT} {more}")


def test_training_writes_the_lora_that_it_names(world, trained):
    tensors = load_file(world.places["lora"])
    assert "diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight" in tensors


@pytest.mark.parametrize(
    "more",
    [
        "--blocks_to_swap 36 --img_in_txt_in_offloading --split_attn",
        SAMPLES,
        "--fp8_llm" + SAMPLES,
        "--show_timesteps console",
        "--min_timestep 200 --max_timestep 800 --weighting_scheme logit_normal --logit_mean 0.1",
        "--guidance_scale 1.0 --log_with tensorboard --logging_dir {folder}/logs --log_prefix a",
        "--network_args loraplus_lr_ratio=4 \"exclude_patterns=[r'.*single_blocks.*']\" verbose=True",
        "--network_args \"exclude_patterns=['.*']\" \"include_patterns=[r'.*img_attn.*']\"",
        compiling("--dynamo_backend INDUCTOR --dynamo_mode default"),
        "--optimizer_type schedulefree.AdamWScheduleFree --optimizer_args weight_decay=0.01",
        "--lr_scheduler constant_with_warmup --lr_warmup_steps 2 --gradient_accumulation_steps 2",
        "--scale_weight_norms 1.0 --network_alpha 16 --network_dropout 0.1 --max_grad_norm 0.5",
        "--dit_dtype bfloat16 --dit_in_channels 16 --training_comment hello --metadata_title cat",
        "--network_weights {lora}",
    ],
)
def test_training(world, trained, more, tmp_path):
    world.run(f"{TRAIN} {more} --output_name {shlex.quote(tmp_path.name)}")


def test_training_the_whole_network(world, cached):
    network = "--network_module networks.lora --network_dim 32 "
    words = TRAIN.replace("hv_train_network.py", "hv_train.py").replace(network, "")
    world.run(words.replace("--fp8_base ", "") + " --output_name whole")
    trained = load_file(world.places["out"] / "whole.safetensors")
    assert "double_blocks.0.img_attn_qkv.weight" in trained


def test_training_stops_and_goes_on(world, trained):
    world.run(f"{TRAIN} --output_name state --save_state --save_last_n_epochs_state 1")
    (state,) = world.places["out"].glob("state*-state")
    resumed = TRAIN.replace("--max_train_epochs 16", "--max_train_epochs 2")
    world.run(f"{resumed} --output_name state --resume {shlex.quote(str(state))}")


def test_training_from_a_file_of_options(world, trained):
    words = iter(world.words(TRAIN)[3:])
    lines: list[str] = []
    word = next(words, None)
    while word is not None:
        following = next(words, None)
        if following is None or following.startswith("--"):
            lines.append(f"{word.removeprefix('--')} = true")
            word = following
            continue
        number = re.fullmatch(r"[\d.e-]+", following)
        lines.append(f"{word.removeprefix('--')} = {following if number else repr(following)}")
        word = next(words, None)
    text = "[general]\n" + "\n".join(lines) + "\n"
    world.places["config"].write_text(text, encoding="utf-8")
    world.run("accelerate launch hv_train_network.py --config_file {config} --output_name filed")
    filed = load_file(world.places["out"] / "filed.safetensors")
    typed_out = load_file(world.places["lora"])
    assert all(torch.equal(filed[name], typed_out[name]) for name in typed_out)


@pytest.fixture(scope="module")
def merged(world, trained):
    world.run(MERGE)
    return load_file(world.folder / "merged.safetensors")


def test_merging(world, merged):
    before = torch.load(world.places["dit"], weights_only=True)["module"]
    assert set(merged) == set(before)
    assert any(not torch.equal(merged[name].to(before[name]), before[name]) for name in before)


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--fp8_fast",
        "--blocks_to_swap 38 --img_in_txt_in_offloading --fp8_llm",
        "--flow_shift 17.0 --embedded_cfg_scale 6.0 --fps 24 --device cpu --vae_dtype float32",
        "--video_path {video} --strength 0.8",
        "--video_path {frames} --strength 0.5",
        compiling("--compile --compile_args inductor max-autotune-no-cudagraphs False False"),
        "--exclude_single_blocks --no_metadata --output_type images",
        SKYREELS,
        SKYREELS + " --dit {i2v} --image_path {image}",
        SKYREELS + " --dit {i2v} --image_path {image} --dit_in_channels 32",
    ],
)
def test_generating(world, trained, more):
    before = set(world.places["save"].rglob("*"))
    world.run(f"{GENERATE} {more}")
    made = {p.suffix for p in set(world.places["save"].rglob("*")) - before if p.is_file()}
    assert made == ({".png"} if "images" in more else {".mp4", ".safetensors"})


def test_latents_first_and_frames_later(world, trained):
    save = "--save_path {folder}/later"
    world.run(f"{GENERATE} {save} --output_type latent")
    (latent,) = (world.folder / "later").glob("*_latent.safetensors")
    decode = f"{GENERATE} --latent_path {shlex.quote(str(latent))} {save}"
    world.run(f"{decode} --output_type video")
    assert len(list((world.folder / "later").glob("*.mp4"))) == 1


def test_saving_the_merged_model(world, merged):
    world.run(f"{GENERATE} --save_merged_model {{folder}}/whole.safetensors")
    whole = load_file(world.folder / "whole.safetensors")
    assert set(whole) == set(merged)
    assert all(torch.equal(whole[name], merged[name]) for name in whole)


def test_converting_there_and_back(world, trained):
    there, back = "{folder}/another_format.safetensors", "{folder}/back.safetensors"
    world.run(f"python convert_lora.py --input {{lora}} --output {there} --target other")
    other = load_file(world.folder / "another_format.safetensors")
    assert "diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight" in other
    world.run(f"python convert_lora.py --input {there} --output {back} --target default")
    # What is trained is written in the first of the two forms, which other programs load.
    assert set(other) == set(load_file(world.places["lora"]))
    assert len(load_file(world.folder / "back.safetensors")) == len(other) // 2 * 3


@pytest.mark.parametrize(
    "more", ["--beta 0.95", "--no_sort --beta 0.9 --beta2 0.95", "--sigma_rel 0.2"]
)
def test_averaging_loras(world, trained, more):
    words = f"{{lora}} {{lora}} {more} --output_file {{folder}}/ema.safetensors"
    world.run(f"python lora_post_hoc_ema.py {words}")
