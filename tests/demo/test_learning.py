"""Training really teaches: on real pictures, with a real (tiny) checkpoint, by the real commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi.config.cache import CacheLatentsConfig, CacheTextConfig
from musubi.config.optimization import TimestepOptions
from musubi.config.options import for_architecture
from musubi.config.train import TrainConfig
from musubi.demo import lesson, released, shapes
from musubi.demo.pictures import read_clip
from musubi.lora.files import read_lora
from musubi.lora.merge import merging_transform
from musubi.plugin import Prompt, Quiet
from musubi.train.checkpoints import Names
from musubi.train.state import find
from musubi.train.step import FlowMatchingLoss
from musubi.weights.load import load
from musubi.weights.nets import Nets

STEPS = 30
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world():
    return released.read()


@pytest.fixture(scope="module")
def data(world, tmp_path_factory):
    """The lesson's clips, cached by the commands."""
    from musubi.cache.encode import run_latents, run_text

    folder = tmp_path_factory.mktemp("lesson")
    data = lesson.write_clips(folder / "clips", folder / "cache", count=4)
    arch = world.architecture
    for model, command, run, given in (
        (CacheLatentsConfig, "cache latents", run_latents, {"vae": world.path("vae")}),
        (CacheTextConfig, "cache text", run_text, {"t5": world.path("t5")}),
    ):
        given |= {"vae_dtype": "float32"} if "vae" in given else {}
        given = {name: str(v) if name in ("vae", "t5") else v for name, v in given.items()}
        config = for_architecture(model, arch, command)(
            dataset_config=str(data), device="cpu", **given
        )
        run(config, arch, Quiet())
    return data


def settings(world, data, folder, **more):
    """Options of `musubi train`."""
    return {
        "dit": str(world.path("dit")),
        "dit_dtype": "float32",
        "task": world.task,
        "dataset_config": str(data),
        "mixed_precision": "no",
        "learning_rate": 8e-3,
        "network_dim": 16,
        "network_alpha": 16,
        "timestep_sampling": "shift",
        "discrete_flow_shift": 3.0,
        "seed": 1,
        "log_with": "none",
        "output_dir": str(folder),
        "output_name": "lesson",
        **more,
    }


def train(world, data, folder, **more):
    """`musubi train`, in this process; returns the LoRA."""
    from musubi.train.command import run

    model = for_architecture(TrainConfig, world.architecture, "train")
    run(model(**settings(world, data, folder, **more)), world.architecture, Quiet())
    return folder / "lesson.safetensors"


def kill_while_training(world, data, folder):
    """`musubi train` in a process of its own, killed once it has saved two states; its last step."""
    words = [sys.executable, "-m", "musubi", "train", "--arch", world.arch, "--save_state"]
    options = settings(world, data, folder, max_train_steps=500, save_every_n_steps=1)
    words += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    names = Names(folder, "lesson")
    while len(list(names.states())) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    newest = find(names, "auto")
    assert newest is not None and process.returncode not in (None, 0)
    return int(re.findall(r"\d+", newest.name)[-1])


@pytest.fixture(scope="module")
def lora(world, data, tmp_path_factory):
    return train(world, data, tmp_path_factory.mktemp("out"), max_train_steps=STEPS)


@pytest.fixture(scope="module")
def loss(world):
    """The loss on clips of the lesson that were not trained on, with a LoRA or without."""
    arch = world.architecture
    paths = {name: world.path(name) for name in ("vae", "t5")}
    nets = Nets(arch, paths, device=CPU, dtypes=dict.fromkeys(paths, torch.float32))
    runtime = arch.runtime.load()(arch, arch.task(world.task), {})
    scenes = lesson.scenes(99, 2)
    frames = shapes.draw(scenes).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    prompts = [Prompt(text=scene.caption) for scene in scenes]
    text = [record["t5"] for record in runtime.encode_text(nets, "t5", prompts)]
    with torch.no_grad():
        batch = {"latents": nets["vae"].encode(frames), "t5": text}

    def measured(path=None):
        transform = None if path is None else merging_transform([(read_lora(path, arch), 1.0)])
        dit = load(
            arch.dit, world.path("dit"), device=CPU, dtype=torch.float32, transform=transform
        )
        objective = FlowMatchingLoss.of_one(
            runtime,
            arch.task(world.task),
            dit,
            TimestepOptions(),
            CPU,
            lambda: torch.autocast("cpu", enabled=False),
            0,
        )
        levels = (0.97, 0.85, 0.6)
        return float(
            torch.stack([objective.losses_at(batch, t, "held out") for t in levels]).mean()
        )

    return measured


def test_a_lora_learns_what_the_base_never_saw(lora, loss):
    assert loss(lora) < 0.6 * loss()


def test_an_untrained_and_a_broken_lora_would_fail_by_far(lora, loss, tmp_path):
    base, tensors = loss(), load_file(lora)
    untrained = {n: t * 0 if "lora_up" in n else t for n, t in tensors.items()}
    save_file(untrained, tmp_path / "untrained.safetensors")
    assert loss(tmp_path / "untrained.safetensors") == pytest.approx(base, rel=1e-4)
    broken = {n: t.flip(0) if "lora_up" in n else t for n, t in tensors.items()}
    save_file(broken, tmp_path / "broken.safetensors")
    assert loss(tmp_path / "broken.safetensors") > 0.95 * base


def test_a_killed_and_resumed_run_draws_the_same_sample(world, data, tmp_path):
    parted = tmp_path / "parted"
    last = kill_while_training(world, data, parted) + 1
    prompts = tmp_path / "prompts.txt"
    words = "--w 64 --h 64 --f 5 --s 2 --fs 3.0 --l 1.0"
    prompts.write_text(f"{lesson.prompts(1)[0]} {words}\n", encoding="utf-8")
    drawing = {
        "vae": str(world.path("vae")),
        "vae_dtype": "float32",
        "t5": str(world.path("t5")),
        "sample_prompts": str(prompts),
        "sample_every_n_steps": last,
        "max_train_steps": last,
    }
    whole = train(world, data, tmp_path / "whole", **drawing)
    resumed = train(world, data, parted, resume="auto", **drawing)
    one, other = load_file(whole), load_file(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    drawn = [
        list((folder / "sample").glob(f"*_{last:06d}_*.mp4"))
        for folder in (tmp_path / "whole", parted)
    ]
    assert len(drawn[0]) == len(drawn[1]) == 1
    assert (read_clip(drawn[0][0]) == read_clip(drawn[1][0])).all()
