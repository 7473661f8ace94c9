"""The options of `musubi bench`."""

from __future__ import annotations

from typing import Literal

from musubi.config.memory import TrainMemoryOptions
from musubi.config.options import Retired, option

_CASE = "Case"


class BenchConfig(TrainMemoryOptions):
    """`musubi bench`."""

    size: str | None = option(
        None,
        "The published variant, or the end of its name, such as 14B; the first one when not given.",
        group=_CASE,
    )
    phase: Literal["train", "sample", "error", "text", "encode", "decode"] = option(
        "train",
        "What to measure. train: a training step of a LoRA. sample: a denoising step with "
        "classifier-free guidance. error: how much the settings change the outputs and gradients "
        "of the unchanged model. text: the first text encoder on a caption. encode, decode: the "
        "VAE on a video, or on its latents.",
        group=_CASE,
    )
    width: int = option(832, "Size of the video, in pixels.", group=_CASE, ge=16)
    height: int = option(480, "Size of the video, in pixels.", group=_CASE, ge=16)
    frames: int = option(17, "Frames of the video.", group=_CASE, ge=1)
    batch_size: int = option(1, "Videos per step.", group=_CASE, ge=1)
    network_dim: int = option(32, "Rank of the LoRA.", group=_CASE, ge=1)
    optimizer_type: str = option("adamw", "The optimizer.", group=_CASE)
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass.", group=_CASE
    )
    steps: int = option(
        5, "How many steps to measure; the result is the median.", group=_CASE, ge=1
    )
    device: str | None = option(None, "cuda, cuda:1, cpu …; the best when not given.", group=_CASE)
    cap: str | None = option(
        None, "Device memory that PyTorch may use, such as 12GiB.", group=_CASE, metavar="SIZE"
    )
    calibrate: bool = option(
        False,
        "Measure the card's own speed for some seconds; show it, and save it for `musubi plan`.",
        group=_CASE,
    )
    profile: bool = option(False, "Show where a step's time goes, kernel by kernel.", group=_CASE)
    json_file: str | None = option(
        None,
        "Append the figures to this file, one line of JSON for each case.",
        group=_CASE,
        metavar="FILE",
        aliases=("json",),
    )


RETIRED: tuple[Retired, ...] = ()
