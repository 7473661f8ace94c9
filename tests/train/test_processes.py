"""Two real processes under the launchers: equal to one that accumulates, and what the end of one does."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from musubi import registry
from musubi.testing import media, twins

ENV = {
    **os.environ,
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """A training command but for the name of its output."""
    folder = tmp_path_factory.mktemp("processes")
    wan = registry.find("wan")
    models = twins.write_twins(wan, folder / "models", task=wan.task("t2v"))
    data = media.write_dataset(folder / "data", images=3, videos=0)
    prompts = folder / "prompts.txt"
    one = "--w 32 --h 32 --f 1 --d 1 --s 1"
    prompts.write_text(f"a red ball {one}\na cat {one}\na dog {one}\n", encoding="utf-8")
    return [
        *("-m", "musubi", "train", "--arch", "wan", "--dataset_config", str(data)),
        *(word for name in ("dit", "vae", "t5") for word in (f"--{name}", str(models[name]))),
        *("--network_dim", "2", "--save_precision", "fp32", "--seed", "3"),
        # Its steps are as exact as its gradients; those of Adam are as large where there are none.
        *("--optimizer_type", "SGD", "--learning_rate", "1e-1", "--max_grad_norm", "0"),
        *("--network_dropout", "0.2", "--sample_prompts", str(prompts), "--log_with", "none"),
        *("--output_dir", str(folder / "out"), "--output_name"),
    ]


def out(words: list[str]) -> Path:
    return Path(words[words.index("--output_dir") + 1])


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.pipeline
def test_two_processes_equal_accumulation(words: list[str]) -> None:
    more = [
        *("--max_train_steps", "3", "--validation_split", "1"),
        *("--sample_at_first", "--sample_every_n_steps", "2"),
    ]
    alone = [sys.executable, *words, "one", *more, "--gradient_accumulation_steps", "2"]
    subprocess.run(alone, env=ENV, check=True, capture_output=True, timeout=300)
    launch = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", free_port(), *words, "two", *more),
        # Each process streams blocks of its own: the answers stay.
        *("--blocks_to_swap", "2", "--recompute", "attention", "--optimizer_offload"),
    ]
    done = subprocess.run(launch, env=ENV, check=True, capture_output=True, text=True, timeout=300)
    one, two = (load_file(out(words) / f"{n}.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    assert any(tensor.abs().sum() > 0 for name, tensor in two.items() if "lora_up" in name)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-7)
    texts = [(out(words) / n / "metrics.jsonl").read_text("utf-8") for n in ("one", "two")]
    assert texts[0].count("\n") == texts[1].count("\n") > 3
    # Each preview is drawn by one of them, and the first one tells of all.
    drawn = {
        n: sorted(p.name.split("_")[1:3] for p in (out(words) / "sample").glob(f"{n}_*"))
        for n in ("one", "two")
    }
    assert drawn["one"] == drawn["two"] and len(drawn["two"]) == 6
    assert done.stdout.count("Preview ") == 6


@pytest.mark.pipeline
@pytest.mark.skipif(sys.platform != "linux", reason="finds a process by its environment in /proc")
def test_when_one_process_is_killed_the_state_is_saved_and_another_number_goes_on(
    words: list[str],
) -> None:
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-port", free_port(), *words, "dead", "--max_train_steps", "100000"),
    ]
    running = subprocess.Popen(launch, env=ENV, stderr=subprocess.PIPE, text=True)
    metrics = out(words) / "dead" / "metrics.jsonl"
    while running.poll() is None and not (
        metrics.is_file() and metrics.read_bytes().count(b"\n") > 3
    ):
        time.sleep(0.1)
    os.kill(_process(rank=1, below=running.pid), signal.SIGKILL)
    said = running.communicate(timeout=120)[1]
    assert running.returncode != 0
    assert said.count("Another process of this run has ended") == 1, said
    assert "Go on with: " in said
    (state,) = out(words).glob("dead-step*-state")
    step = int(state.name.removeprefix("dead-step").removesuffix("-state"))
    again = [
        *(sys.executable, *words, "dead", "--resume", "auto", "--max_train_steps", str(step + 2)),
        *("--gradient_accumulation_steps", "2"),
    ]
    subprocess.run(again, env=ENV, check=True, capture_output=True, timeout=300)
    assert (out(words) / "dead.safetensors").is_file()


def _process(*, rank: int, below: int) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == below and f"RANK={rank}".encode() in (
                (folder / "environ").read_bytes().split(b"\0")
            ):
                return int(folder.name)
    raise AssertionError(f"there is no process of rank {rank}")
