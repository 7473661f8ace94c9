"""The commands that Wan's users of musubi-tuner know, run with only the script's name replaced.

Each is written as it was typed, at full size; what makes it a toy is in `TOY`. They run in this
process, in the order of a user's day: cache, train, generate, convert.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from musubi import registry
from musubi.cli import main
from musubi.testing import media, twins

SCRIPTS = {
    "wan_cache_latents.py": "cache latents --arch wan",
    "wan_cache_text_encoder_outputs.py": "cache text --arch wan",
    "wan_train_network.py": "train --arch wan",
    "wan_generate_video.py": "generate --arch wan",
    "convert_lora.py": "lora convert",
    "lora_post_hoc_ema.py": "lora ema",
}
TOY = (
    ("--video_size 832 480", "--video_size 32 48"),
    ("--video_size 480 832", "--video_size 48 32"),
    ("--video_length 81", "--video_length 5"),
    ("--infer_steps 20", "--infer_steps 2"),
    ("--infer_steps 25", "--infer_steps 2"),
    ("--max_train_epochs 16", "--max_train_epochs 1"),
    ("--slg_layers 9,10", "--slg_layers 1"),
    ("--blocks_to_swap 20", "--blocks_to_swap 1"),
)
FILES = {
    "dit": "t2v",
    "i2v": "i2v",
    "flf2v": "flf2v",
    "fc": "t2v-FC",
    "high": "t2v",
    "i2v_low": "i2v-2.2",
    "i2v_high": "i2v-2.2",
}


class World:
    """The folders that the commands name."""

    def __init__(self, folder: Path) -> None:
        architecture = registry.find("wan")
        self.folder = folder
        ckpts = folder / "ckpts"
        self.places: dict[str, Path] = {"folder": folder, "out": folder / "out"}
        for seed, (name, task) in enumerate(FILES.items()):
            numbers = twins.numbers_for(architecture.task(task))
            self.places[name] = twins.write_twin(
                architecture.dit, ckpts / name, numbers=numbers, seed=seed
            )
        for name, dialect, suffix in (
            ("vae", "official", ".pth"),
            ("t5", "official", ".pth"),
            ("clip", "official", ".pth"),
        ):
            self.places[name] = twins.write_twin(
                architecture.component(name), ckpts, dialect=dialect, suffix=suffix
            )
        self._datasets()
        self.places |= {
            "lora": folder / "out" / "name-of-lora.safetensors",
            "save": folder / "save",
            "prompts": folder / "prompts.txt",
            "image": folder / "start.png",
            "end": folder / "end.png",
            "control": folder / "controls" / "red_0.mp4",
            "video": next((folder / "data").rglob("*.mp4")),
            "mask": folder / "mask.png",
        }
        for name, colour in (("image", "red"), ("end", "blue")):
            picture = media.frame(60, 40, colour=colour, shape="ball", at=0.5)
            media.write_image(self.places[name], picture)
        Image.new("L", (60, 40), 255).save(self.places["mask"])

    def _datasets(self) -> None:
        """Videos; videos with controls; images with control images."""
        plain = media.write_dataset(self.folder / "data", images=0, videos=1, width=48, height=32)
        self.places["toml"] = plain
        videos = next((self.folder / "data").rglob("*.mp4"))
        for name in ("controls", "pictures"):
            (self.folder / name).mkdir()
        media.write_video(
            self.folder / "controls" / f"{videos.stem}.mp4",
            media.clip(48, 32, 9, colour="white"),
        )
        common = "[general]\nresolution = [48, 32]\ncaption_extension = '.txt'\nbatch_size = 1\n"
        self.places["fc_toml"] = self.folder / "fc.toml"
        self.places["fc_toml"].write_text(
            common + f"[[datasets]]\nvideo_directory = '{videos.parent}'\ntarget_frames = [5]\n"
            f"control_directory = '{self.folder / 'controls'}'\n"
            f"cache_directory = '{self.folder / 'fc_cache'}'\n",
            encoding="utf-8",
        )
        images = self.folder / "images"
        for number, colour in enumerate(("red", "green")):
            picture = media.frame(48, 32, colour=colour, shape="ball", at=0.3)
            media.write_image(images / f"a{number}.png", picture)
            (images / f"a{number}.txt").write_text("a ball", encoding="utf-8")
            media.write_image(self.folder / "pictures" / f"a{number}.png", picture[:, ::-1].copy())
        self.places["one_toml"] = self.folder / "one.toml"
        self.places["one_toml"].write_text(
            common + f"[[datasets]]\nimage_directory = '{images}'\n"
            f"control_directory = '{self.folder / 'pictures'}'\n"
            f"cache_directory = '{self.folder / 'one_cache'}'\n"
            "fp_1f_clean_indices = [0]\nfp_1f_target_index = 1\n",
            encoding="utf-8",
        )

    def words(self, command: str) -> list[str]:
        """The words behind `musubi`, at toy size."""
        for full, toy in TOY:
            command = command.replace(full, toy)
        script = re.search(r"\b\w+\.py\b", command)
        assert script is not None
        new = SCRIPTS[script[0]].split()
        old = [w.format(**self.places) for w in shlex.split(command[script.end() :])]
        if "--vae" in old and "--vae_dtype" not in old:
            old += ["--vae_dtype", "float32"]  # a CPU takes longer for half precision
        return [*new, *old]

    def run(self, command: str) -> None:
        """Run it; it must end well."""
        with pytest.raises(SystemExit) as end:
            main(self.words(command))
        assert (end.value.code or 0) == 0, command


CACHE = "python wan_cache_latents.py --dataset_config {toml} --vae {vae}"
CACHE_TEXT = (
    "python wan_cache_text_encoder_outputs.py --dataset_config {toml} --t5 {t5} --batch_size 16"
)
TRAIN = (
    "accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 wan_train_network.py "
    "--task t2v-1.3B --dit {dit} --dataset_config {toml} --sdpa --mixed_precision bf16 --fp8_base "
    "--optimizer_type adamw8bit --learning_rate 2e-4 --gradient_checkpointing "
    "--max_data_loader_n_workers 2 --persistent_data_loader_workers "
    "--network_module networks.lora_wan --network_dim 32 "
    "--timestep_sampling shift --discrete_flow_shift 3.0 "
    "--max_train_epochs 16 --save_every_n_epochs 1 --seed 42 "
    "--output_dir {out} --output_name name-of-lora"
)
GENERATE = (
    "python wan_generate_video.py --fp8 --task t2v-1.3B --video_size 832 480 --video_length 81 "
    '--infer_steps 20 --prompt "prompt for the video" --save_path {save} --output_type both '
    "--dit {dit} --vae {vae} --t5 {t5} --attn_mode torch"
)
IMAGE = GENERATE.replace("t2v-1.3B", "i2v-14B").replace("{dit}", "{i2v}") + (
    " --clip {clip} --image_path {image}"
)
SAMPLES = (
    " --vae {vae} --t5 {t5} --sample_prompts {prompts} --sample_every_n_epochs 1 --sample_at_first"
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
def trained(world):
    world.run(f"{CACHE} --vae_cache_cpu")
    world.run(CACHE_TEXT)
    world.run(TRAIN)


def of(command, task, dit):
    """A training command for another task and file."""
    return command.replace("t2v-1.3B", task).replace("{dit}", f"{{{dit}}}")


def test_training_writes_the_lora_that_it_names(world, trained):
    tensors = load_file(world.places["lora"])
    assert "lora_unet_blocks_0_cross_attn_q.lora_down.weight" in tensors
    assert len(tensors) == 3 * 20


@pytest.mark.parametrize(
    "more",
    [
        "--lora_weight {lora} --lora_multiplier 1.0 --fp8_scaled",
        "--sample_solver dpm++ --flow_shift 5.0 --guidance_scale 5.0 --cpu_noise --fps 16",
        "--video_path {video} --strength 0.5",
        "--sample_solver vanilla --cfg_skip_mode early --cfg_apply_ratio 0.6 --no_metadata",
        "--slg_layers 9,10 --slg_scale 2.0 --slg_start 0.0 --slg_end 1.0 --slg_mode original",
        "--task t2i-14B --video_length 1 --output_type images --blocks_to_swap 20",
        "--lora_weight {lora} --include_patterns cross_attn --output_type latent_images",
    ],
)
def test_generating_from_text(world, trained, more):
    world.run(f"{GENERATE} {more}")


def test_image_to_video(world):
    world.run(f"{CACHE} --clip {{clip}}")
    world.run(CACHE_TEXT)
    world.places["prompts"].write_text(
        f"a ball --w 48 --h 32 --f 5 --d 1 --s 2 --fs 3 --l 5 --i {world.places['image']}\n",
        encoding="utf-8",
    )
    train = of(TRAIN, "i2v-14B", "i2v").replace("name-of-lora", "i2v")
    world.run(train + SAMPLES + " --clip {clip}")
    assert len(load_file(world.places["out"] / "i2v.safetensors")) == 3 * 24
    assert len(list((world.places["out"] / "sample").glob("i2v_*.mp4"))) == 2
    world.run(f"{IMAGE} --lora_weight {{out}}/i2v.safetensors")
    world.run(f"{IMAGE} --end_image_path {{end}} --trim_tail_frames 3")
    lines = world.folder / "lines.txt"
    lines.write_text(
        "\n".join(f"a ball --i {world.places[n]} --d {i}" for i, n in enumerate(("image", "end"))),
        encoding="utf-8",
    )
    batch = re.sub(r'--prompt "[^"]*" ', "", IMAGE).replace(" --image_path {image}", "")
    world.run(f"{batch} --from_file {shlex.quote(str(lines))} --save_path {{folder}}/batch")
    assert len(list((world.folder / "batch").glob("*.mp4"))) == 2


def test_first_and_last_frame(world):
    world.run(f"{CACHE} --clip {{clip}} --task flf2v-14B")
    world.run(CACHE_TEXT)
    world.run(of(TRAIN, "flf2v-14B", "flf2v").replace("name-of-lora", "flf2v"))
    ends = IMAGE.replace("i2v-14B", "flf2v-14B").replace("{i2v}", "{flf2v}")
    world.run(f"{ends} --end_image_path {{end}}")


def test_fun_control(world):
    toml = {"{toml}": "{fc_toml}"}
    words = [c.replace("{toml}", toml["{toml}"]) for c in (CACHE, CACHE_TEXT, TRAIN)]
    world.run(words[0])
    world.run(words[1])
    world.places["prompts"].write_text(
        f"a ball --w 48 --h 32 --f 5 --d 1 --s 2 --cn {world.places['control']}\n",
        encoding="utf-8",
    )
    train = of(words[2], "t2v-1.3B-FC", "fc").replace("name-of-lora", "fc")
    world.run(train + SAMPLES)
    generate = of(GENERATE, "t2v-1.3B-FC", "fc")
    world.run(f"{generate} --control_path {{control}}")
    world.run(f"{words[0]} --clip {{clip}}")
    world.run(of(words[2], "i2v-14B-FC", "fc").replace("name-of-lora", "fc2"))
    image = IMAGE.replace("i2v-14B", "i2v-14B-FC").replace("{i2v}", "{fc}")
    world.run(f"{image} --control_path {{control}}")


def test_one_frame(world):
    words = [c.replace("{toml}", "{one_toml}") for c in (CACHE, CACHE_TEXT, TRAIN)]
    world.run(f"{words[0]} --clip {{clip}} --one_frame")
    world.run(words[1])
    of_one = "target_index=1,control_index=0"
    world.places["prompts"].write_text(
        f"a ball --w 48 --h 32 --f 1 --d 1 --s 2 --of {of_one} --i {world.places['image']} "
        f"--ci {world.places['image']}\n",
        encoding="utf-8",
    )
    train = of(words[2], "i2v-14B", "i2v").replace("name-of-lora", "one")
    world.run(f"{train} --one_frame {SAMPLES} --clip {{clip}}")
    assert len(list((world.places["out"] / "sample").glob("one_*.png"))) == 2
    single = IMAGE.replace("--video_length 81", "--video_length 1").replace("both", "latent_images")
    world.run(
        f"{single} --one_frame_inference {of_one} --control_image_path {{image}} "
        "--control_image_mask_path {mask}"
    )
    between = single.replace("i2v-14B", "flf2v-14B").replace("{i2v}", "{flf2v}")
    world.run(
        f"{between} --end_image_path {{end}} --control_image_path {{image}} {{end}} "
        '--one_frame_inference "target_index=5,control_index=0;10"'
    )


def test_two_experts(world, trained, capsys):
    world.run(f"{CACHE} --i2v")
    world.run(CACHE_TEXT)
    both = "--dit {i2v_low} --dit_high_noise {i2v_high} --timestep_boundary 0.9"
    train = of(TRAIN, "i2v-A14B", "dit").replace("--dit {dit}", both)
    world.run(train.replace("name-of-lora", "a14b") + " --offload_inactive_dit")
    low, high = (world.places["out"] / f"a14b{end}.safetensors" for end in ("", "_high_noise"))
    assert sorted(load_file(low)) == sorted(load_file(high))
    for alone, name in (("--dit {i2v_low}", "low"), ("--dit_high_noise {i2v_high}", "high")):
        words = train.replace(both, alone).replace("name-of-lora", name)
        world.run(f"{words} --min_timestep 0 --max_timestep 1000")
        assert load_file(world.places["out"] / f"{name}.safetensors")
    image = IMAGE.replace("i2v-14B", "i2v-A14B").replace("--dit {i2v}", both)
    image = image.replace(" --clip {clip}", "")
    world.run(
        f"{image} --offload_inactive_dit --guidance_scale 3.5 --guidance_scale_high_noise 4.5"
    )
    given = (
        f"--lora_weight {shlex.quote(str(low))} --lora_weight_high_noise {shlex.quote(str(high))}"
    )
    world.run(f"{image} {given}")
    swapped = world.words(f"{image} --lora_weight {shlex.quote(str(high))}")
    with pytest.raises(SystemExit) as end:
        main(swapped)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "trained for the dit_high_noise" in said and "--lora_weight_high_noise" in said
    text = of(GENERATE, "t2v-A14B", "dit") + " --dit_high_noise {high}"
    world.run(f"{text} --lora_weight_high_noise {{lora}} --lora_multiplier_high_noise 0.5")


def test_converting_there_and_back(world, trained):
    there, back = "{folder}/another_format.safetensors", "{folder}/back.safetensors"
    world.run(f"python convert_lora.py --input {{lora}} --output {there} --target other")
    other = load_file(world.folder / "another_format.safetensors")
    assert "diffusion_model.blocks.0.cross_attn.q.lora_A.weight" in other
    world.run(f"python convert_lora.py --input {there} --output {back} --target default")
    assert set(load_file(world.folder / "back.safetensors")) == set(load_file(world.places["lora"]))
    world.run("python lora_post_hoc_ema.py {lora} {lora} --output_file {folder}/ema.safetensors")
