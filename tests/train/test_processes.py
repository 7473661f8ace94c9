"""Two real processes under accelerate's launcher equal one that accumulates."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from musubi import registry
from musubi.testing import media, twins


@pytest.mark.pipeline
def test_two_processes_equal_accumulation(tmp_path: Path) -> None:
    models = twins.write_twins(
        registry.find("wan"), tmp_path / "models", task=registry.find("wan").task("t2v")
    )
    data = media.write_dataset(tmp_path / "data", images=3, videos=0)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball --w 32 --h 32 --f 1 --d 1 --s 1\n", encoding="utf-8")
    words = [
        *("-m", "musubi", "train", "--arch", "wan", "--dataset_config", str(data)),
        *(word for name in ("dit", "vae", "t5") for word in (f"--{name}", str(models[name]))),
        *(
            "--max_train_steps",
            "3",
            "--network_dim",
            "2",
            "--save_precision",
            "fp32",
            "--seed",
            "3",
        ),
        *("--learning_rate", "1e-2", "--validation_split", "1", "--network_dropout", "0.2"),
        # The first process draws previews, and the other one waits for it.
        *("--sample_prompts", str(prompts), "--sample_at_first", "--sample_every_n_steps", "2"),
        *("--output_dir", str(tmp_path / "out"), "--log_with", "none", "--output_name"),
    ]
    env = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    alone = [sys.executable, *words, "one", "--gradient_accumulation_steps", "2"]
    subprocess.run(alone, env=env, check=True, capture_output=True, timeout=300)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
        *("--main_process_port", str(port), *words, "two"),
        # Each process streams blocks of its own: the answers stay.
        *("--blocks_to_swap", "2", "--recompute", "attention", "--optimizer_offload"),
    ]
    subprocess.run(launch, env=env, check=True, capture_output=True, timeout=300)
    one = load_file(tmp_path / "out" / "one.safetensors")
    two = load_file(tmp_path / "out" / "two.safetensors")
    assert one.keys() == two.keys()
    assert any(tensor.abs().sum() > 0 for name, tensor in two.items() if "lora_up" in name)
    assert all(torch.allclose(one[n], two[n], rtol=1e-4, atol=1e-6) for n in one)
    texts = [(tmp_path / "out" / n / "metrics.jsonl").read_text("utf-8") for n in ("one", "two")]
    assert texts[0].count("\n") == texts[1].count("\n") > 3
