"""Whether frames can be decoded while the denoiser stays in memory."""

from __future__ import annotations

import torch

from musubi.config.generate import GenerateConfig
from musubi.config.sizes import parse_bytes
from musubi.plan import networks
from musubi.plan.buckets import Bucket
from musubi.plan.machine import host_room
from musubi.plan.workload import workload
from musubi.plugin import Architecture, Quiet


def decoding_fits(
    config: GenerateConfig,
    architecture: Architecture,
    size: tuple[int, int, int],
    device: torch.device,
) -> bool:
    """Whether the VAE and its activations fit into the free memory; False if that is unknown.

    Args:
        config: The options; `--vram` bounds what may be used.
        architecture: Whose VAE.
        size: Width, height and frames of the video.
        device: The device of the networks.
    """
    room = free_room(config, device)
    if room is None:
        return False
    try:
        about = workload(
            config, architecture, trains=False, report=Quiet(), buckets=(Bucket(*size),)
        )
        used = about.used("vae")
        if not used:
            return False
        need = networks.decoding(
            architecture, about.task, about.options, used, about.buckets[0], None
        )
    except Exception:  # a plan that fails must not stop what works without one
        return False
    return need.device <= room


def free_room(config: GenerateConfig, device: torch.device) -> int | None:
    """Free bytes on the device, within `--vram`; on the CPU, free host memory."""
    if device.type != "cuda":
        return host_room()
    free, _ = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    free += torch.cuda.memory_reserved(device) - allocated
    if config.vram is not None and config.vram.strip().lower() != "auto":
        free = min(free, parse_bytes(config.vram) - allocated)
    return free
