"""The command line on a GPU: memory settings, `--vram auto`, compilation, and several devices."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EVERYTHING = (
    *("--blocks_to_swap", "2", "--recompute", "attention", "--gradient_checkpointing_cpu_offload"),
    *("--ffn_slices", "2"),
)


@pytest.fixture(scope="module")
def cached(run, world):
    words = ("--arch", "wan", "--dataset_config", world.data)
    run("cache", "latents", *words, *world.files("vae"))
    run("cache", "text", *words, *world.files("t5"))


def words_of(world, name, *more):
    prompts = world.folder / "prompts.txt"
    prompts.write_text("a red ball --w 64 --h 48 --f 5 --d 1 --s 2\n", encoding="utf-8")
    return (
        *("train", "--arch", "wan", *world.files("dit", "vae", "t5")),
        *("--dataset_config", world.data, "--mixed_precision", "no", "--network_dim", "4"),
        *("--learning_rate", "2e-3", "--max_train_steps", "3", "--save_precision", "fp32"),
        *("--seed", "42", "--sample_prompts", prompts, "--sample_every_n_steps", "2"),
        *("--output_dir", world.out / name, "--output_name", "cat", *more),
    )


def result(world, name):
    tensors = load_file(world.out / name / "cat.safetensors")
    return torch.cat([tensors[n].flatten() for n in sorted(tensors)])


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def plain(run, world, cached):
    run(*words_of(world, "plain"))
    return result(world, "plain")


@pytest.mark.parametrize(
    ("name", "more", "bound"),
    [
        ("moved", EVERYTHING, 0.02),
        ("away", (*EVERYTHING, "--optimizer_offload"), 0.02),
        ("compiled", ("--compile",), 0.02),
        ("all compiled", (*EVERYTHING, "--compile"), 0.02),
        ("eight", (*EVERYTHING, "--compile", "--fp8_base", "--fp8_scaled", "--fp8_fast"), 0.5),
        ("half", ("--mixed_precision", "bf16", *EVERYTHING, "--compile"), 0.5),
    ],
)
def test_settings_of_memory_leave_what_is_learned(run, world, plain, name, more, bound):
    run(*words_of(world, name, *more))
    # Steps of Adam are as large where a gradient is nearly nothing: rounding shows.
    assert apart(result(world, name), plain) < bound
    assert list((world.out / name / "sample").rglob("*.mp4"))


def test_vram_auto_asks_the_device(run, world, plain):
    done = run(*words_of(world, "auto", "--vram", "auto", "--no-compile"))
    assert "--vram auto:" in done.stdout + done.stderr
    assert apart(result(world, "auto"), plain) < 0.02


def test_generating_is_the_same_streamed_and_compiled(run, world):
    made = {}
    for name, more in {
        "plain": (),
        "streamed": ("--blocks_to_swap", "2", "--text_encoder_swap", "1"),
        "compiled": ("--compile", "--blocks_to_swap", "1"),
        "auto": ("--vram", "auto"),
    }.items():
        folder = world.out / f"made {name}"
        run(
            *("generate", "--arch", "wan", *world.files("dit", "vae", "t5"), "--prompt", "a ball"),
            *("--video_size", "48", "64", "--video_length", "5", "--infer_steps", "2"),
            *("--seed", "7", "--output_type", "latent", "--save_path", folder, *more),
        )
        (path,) = folder.glob("*.safetensors")
        made[name] = torch.cat([t.float().flatten() for t in load_file(path).values()])
    for name, found in made.items():
        assert apart(found, made["plain"]) < 1e-3, name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("compiled", [(), ("--compile",)])
def test_two_devices_that_stream_equal_one_that_accumulates(run, world, cached, compiled):
    name = "two compiled" if compiled else "two"
    # Its steps are as exact as its gradients; those of Adam are as large where there are none.
    exact = ("--optimizer_type", "SGD", "--learning_rate", "1e-1", "--max_grad_norm", "0")
    common = ("--validation_split", "1", "--network_dropout", "0.2", *exact)
    run(*words_of(world, "one", *common, "--gradient_accumulation_steps", "2"))
    launch = [
        *(
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
        ),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", free_port(), "-m", "musubi"),
        *words_of(world, name, *common, *EVERYTHING, *compiled),
    ]
    done = subprocess.run(
        list(map(str, launch)), capture_output=True, text=True, timeout=600, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    # Products round otherwise when they are compiled or cut into slices.
    assert apart(result(world, name), result(world, "one")) < 2e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_share_caching(run, world, cached):
    records = sorted(world.folder.rglob("*_wan*.safetensors"))
    before = {path: load_file(path) for path in records}
    assert before
    for path in records:
        path.unlink()
    words = ("--arch", "wan", "--dataset_config", world.data)
    for kind, files in (("latents", world.files("vae")), ("text", world.files("t5"))):
        launch = [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", free_port(), "-m", "musubi", "cache", kind, *words, *files),
        ]
        done = subprocess.run(list(map(str, launch)), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    for path, tensors in before.items():
        found = load_file(path)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors), path
