"""Measure one case: build it, warm it up, take the median of some steps and the peak of memory."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from musubi.bench import card, errors
from musubi.bench.case import BenchCase
from musubi.bench.network import random_network
from musubi.cache.tasks import device_of
from musubi.config.bench import BenchConfig
from musubi.config.memory import compiler_words, dit_policy
from musubi.config.sizes import gibibytes, parse_bytes
from musubi.config.task import published
from musubi.errors import ConfigError
from musubi.memory.apply import PolicyPlacement
from musubi.memory.compiled import Compiler
from musubi.plugin import Architecture, Component, Policy, Report, Variant
from musubi.weights.dtypes import parse_dtype

WARM_UP = 2


def run(config: BenchConfig, architecture: Architecture, report: Report) -> None:
    """Measure, and show the figures.

    Raises:
        ConfigError: No such size, or options that contradict each other.
    """
    device = device_of(config.device)
    if config.calibrate:
        card.tell(device, report)
        return
    variant = _variant(architecture, config.size)
    if config.cap is not None and device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(number).total_memory
        torch.cuda.set_per_process_memory_fraction(parse_bytes(config.cap) / total, number)
    case = BenchCase(config, architecture, variant, device)
    component = case.component()
    policy = dit_policy(config, component)
    started = time.perf_counter()
    placement = PolicyPlacement(
        component.traits,
        policy,
        device,
        compiler=Compiler(**compiler_words(config)),
        report=report,
    )
    numbers = variant.numbers if component.role == "dit" else component.full
    if not numbers:
        raise ConfigError(
            f"{architecture.title} does not say how large its {component.name} is.",
            fix="Try --phase train or sample.",
        )
    if config.phase == "error":
        errors.tell(case, numbers, policy, placement, _dtype(component, device), report)
        return
    step = case.step(random_network(component, numbers, placement, dtype=_dtype(component, device)))
    _wait(device)
    built = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    for _ in range(WARM_UP):
        step()
    _wait(device)
    warm = time.perf_counter() - started
    seconds = [_timed(step, device) for _ in range(config.steps)]
    figures = {
        "arch": architecture.name,
        "size": variant.name,
        "phase": config.phase,
        "width": config.width,
        "height": config.height,
        "frames": config.frames,
        "batch": config.batch_size,
        "rank": config.network_dim,
        "optimizer": config.optimizer_type,
        "policy": dataclasses.asdict(policy),
        "s": round(statistics.median(seconds), 4),
        "s_min": round(min(seconds), 4),
        "s_max": round(max(seconds), 4),
        "peak_gib": _peak(device),
        "reserved_gib": _reserved(device),
        "build_s": round(built, 1),
        "warm_s": round(warm, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
    }
    if config.profile:
        report.note(_profile(step, device))
    _tell(figures, policy, report)
    if config.json_file is not None:
        with Path(config.json_file).open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


def _variant(architecture: Architecture, asked: str | None) -> Variant:
    return architecture.variants[0] if asked is None else published(architecture, asked)


def _dtype(component: Component, device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32  # where convolutions in half precision take minutes
    return torch.bfloat16 if component.dtype == "file" else parse_dtype(component.dtype)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(step: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - started


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(gibibytes(torch.cuda.max_memory_allocated(device)), 2)


def _reserved(device: torch.device) -> float | None:
    """What the allocator took from the device for it: the peak, and what it could not use again."""
    if device.type != "cuda":
        return None
    return round(gibibytes(torch.cuda.max_memory_reserved(device)), 2)


def _profile(step: Callable[[], Any], device: torch.device) -> str:
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=kinds) as measured:
        step()
        _wait(device)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return measured.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=90)


def _tell(figures: dict[str, Any], policy: Policy, report: Report) -> None:
    settings = [f"{k}={v}" for k, v in dataclasses.asdict(policy).items() if v != _PLAIN[k]]
    peak = figures["peak_gib"]
    report.table(
        f"{figures['arch']} {figures['size']}, {figures['width']}x{figures['height']}, "
        f"{figures['frames']} frames, {figures['phase']}",
        ("settings", "s/step", "peak GiB", "built s", "first steps s"),
        [
            (
                ", ".join(settings) or "as loaded",
                f"{figures['s']:.3f}",
                "-" if peak is None else f"{peak:.2f}",
                figures["build_s"],
                figures["warm_s"],
            )
        ],
    )


_PLAIN = dataclasses.asdict(Policy())
