"""Trains the tiny denoiser on clips without stars and spins: by `musubi cache` and `musubi train --full`.

Every command is shown before it runs, and can be typed instead.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import torch
from make import ARCH, architecture, save_component, write_clips, write_untrained_dit

from musubi.weights.load import load

PEAK, SHIFT = 1e-3, 3.0
DROPPED = 0.12
KEPT = 0.998  # of the running mean of the weights, a step
NAME = "denoiser"


def train_dit(
    folder: Path, *, steps: int = 18800, count: int = 6000, batch: int = 128, **more: object
) -> None:
    """Draw the clips, cache them, train, and save the mean of the weights as `dit.safetensors`.

    Args:
        folder: Where the VAE, the text encoder and its tokenizer are, and the denoiser is put.
        steps: Of training.
        count: Different clips.
        batch: Clips in a step.
        more: Further options of `musubi train`.
    """
    if not (folder / "data.toml").exists():
        write_clips(folder, count=count, batch=batch)
    write_untrained_dit(folder)
    for words in commands(folder, steps=steps, **more):
        sys.stdout.write(f"$ musubi {shlex.join(words)}\n")
        sys.stdout.flush()
        subprocess.run([sys.executable, "-m", "musubi", *words], check=True)
    component = architecture().dit
    trained = folder / "out" / f"{NAME}_ema.safetensors"
    dit = load(component, trained, device=torch.device("cpu"), dtype=torch.float32)
    save_component(component.name, dit, folder / "dit.safetensors", torch.bfloat16)


def commands(folder: Path, *, steps: int, **more: object) -> list[list[str]]:
    """The words behind `musubi` of each command."""
    data = ["--arch", ARCH, "--dataset_config", (folder / "data.toml").as_posix()]
    vae = ["--vae", (folder / "vae.safetensors").as_posix(), "--vae_dtype", "float32"]
    text = ["--t5", (folder / "t5.safetensors").as_posix()]
    options = {
        "task": "t2v",
        "dit": (folder / "dit-untrained.safetensors").as_posix(),
        "learning_rate": PEAK,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": "5%",
        "timestep_sampling": "shift",
        "discrete_flow_shift": SHIFT,
        "caption_dropout_rate": DROPPED,
        "ema_decay": KEPT,
        "max_train_steps": steps,
        "seed": 1,
        "log_with": "none",
        "output_dir": (folder / "out").as_posix(),
        "output_name": NAME,
        **({"mixed_precision": "bf16"} if torch.cuda.is_available() else {"mixed_precision": "no"}),
        **more,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [
        ["cache", "latents", *data, *vae],
        ["cache", "text", *data, *text],
        ["train", *data, "--full", *flags],
    ]
