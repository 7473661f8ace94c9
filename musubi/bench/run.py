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
from torch import nn

from musubi.bench.network import random_network
from musubi.cache.tasks import device_of
from musubi.config.bench import BenchConfig
from musubi.config.memory import compiler_words, dit_policy
from musubi.config.sizes import gibibytes, parse_bytes
from musubi.config.task import Choice
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, did_you_mean
from musubi.lora.adapter import Adapters
from musubi.memory.apply import Placement
from musubi.memory.compiled import Compiler
from musubi.memory.example import example_batch
from musubi.spec import Architecture, Policy, Report, Variant
from musubi.train import optim, schedule
from musubi.train.step import Objective
from musubi.train.update import Update

WARM_UP = 2


def run(config: BenchConfig, architecture: Architecture, report: Report) -> None:
    """Measure, and show the figures.

    Raises:
        ConfigError: No such size, or options that contradict each other.
    """
    variant = _variant(architecture, config.size)
    device = device_of(config.device)
    if config.cap is not None and device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(number).total_memory
        torch.cuda.set_per_process_memory_fraction(parse_bytes(config.cap) / total, number)
    policy = dit_policy(config, architecture.dit)
    started = time.perf_counter()
    compiler = Compiler(**compiler_words(config))
    placement = Placement(architecture.dit.traits, policy, device, compiler=compiler, report=report)
    dit = random_network(architecture.dit, variant.numbers, placement)
    case = _Case(config, architecture, variant, dit, device)
    step = case.train() if config.phase == "train" else case.sample()
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


class _Case:
    """The step that is measured, made of the same parts as a run's."""

    def __init__(
        self,
        config: BenchConfig,
        architecture: Architecture,
        variant: Variant,
        dit: nn.Module,
        device: torch.device,
    ) -> None:
        self.config = config
        self.architecture = architecture
        self.dit = dit
        self.device = device
        task = architecture.task(variant.task)
        self.choice = Choice(task, variant)
        options = {o.name: o.default for o in architecture.options}
        self.runtime = architecture.runtime(architecture, task, options)
        self.batch = example_batch(
            architecture,
            task,
            variant.numbers,
            width=config.width,
            height=config.height,
            frames=config.frames,
            batch=config.batch_size,
            device="cpu",
        )

    def train(self) -> Callable[[], Any]:
        """Loss, gradients and the optimizer's step."""
        config = self.config
        targets = self.architecture.dit.traits.lora
        if targets is None:
            raise ConfigError(
                f"{self.architecture.title} takes no LoRA.", fix="Try --phase sample."
            )
        torch.manual_seed(0)
        lora = Adapters.create(self.dit, targets, rank=config.network_dim, alpha=1.0)
        lora.attach()
        lora.train()
        self.dit.train()
        settings = TrainConfig(
            timestep_sampling="shift", discrete_flow_shift=3.0, learning_rate=1e-5
        )
        optimizer = optim.create(
            config.optimizer_type, lora.param_groups(1e-5), lr=1e-5, arguments={}
        )
        update = Update(
            list(lora.parameters()),
            optimizer,
            schedule.create(settings, optimizer, 1000),
            None,
            settings.max_grad_norm,
        )
        objective = Objective(self.runtime, self.dit, settings, self.device, self._autocast, seed=0)

        def step() -> None:
            update.backward(objective.training_loss(self.batch, 1, 0))
            update.step()

        return step

    def sample(self) -> Callable[[], Any]:
        """Two calls of the network, as guidance needs them."""
        moved = {
            k: [x.to(self.device) for x in v] if isinstance(v, list) else v.to(self.device)
            for k, v in self.batch.items()
        }
        given = self.runtime.condition(moved)
        assert given.latents is not None
        x = torch.randn_like(given.latents.float())
        t = torch.full((len(x),), 0.7, device=self.device)

        def step() -> None:
            with torch.no_grad(), self._autocast():
                for _ in range(2):
                    self.runtime.predict(self.dit, x, t, given)

        return step

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def _variant(architecture: Architecture, asked: str | None) -> Variant:
    variants = architecture.variants
    if asked is None:
        return variants[0]
    for variant in variants:
        if variant.name == asked or variant.name.endswith(f"-{asked}"):
            return variant
    raise ConfigError(
        f"{architecture.title} has no size {asked!r}.",
        fix=did_you_mean(asked, [v.name for v in variants]),
    )


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
