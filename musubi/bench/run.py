"""Measure one case: build it, warm it up, take the median of some steps and the peak of memory."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from musubi.bench.network import random_network
from musubi.cache.tasks import device_of
from musubi.config.bench import BenchConfig
from musubi.config.memory import compiler_words, dit_policy
from musubi.config.sizes import gibibytes, parse_bytes
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, did_you_mean
from musubi.lora.adapter import Adapters
from musubi.memory.apply import Placement
from musubi.memory.compiled import Compiler
from musubi.memory.example import example_batch
from musubi.spec import Architecture, Clip, Component, Policy, Report, Variant
from musubi.spec.architecture import Role
from musubi.testing.twins import write_tokenizer
from musubi.train import optim, schedule
from musubi.train.offload import Mirror
from musubi.train.step import Objective, move
from musubi.train.update import Update
from musubi.weights.dtypes import parse_dtype
from musubi.weights.nets import Nets

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
    case = _Case(config, architecture, variant, device)
    component = case.component()
    policy = dit_policy(config, component)
    started = time.perf_counter()
    placement = Placement(
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
    step = case.step(random_network(component, numbers, placement, dtype=_dtype(component)))
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
        device: torch.device,
    ) -> None:
        self.config = config
        self.architecture = architecture
        self.device = device
        self.task = architecture.task(variant.task)
        self.numbers = variant.numbers
        options = {o.name: o.default for o in architecture.options}
        self.runtime = architecture.runtime(architecture, self.task, options)

    def component(self) -> Component:
        """The network that the phase runs."""
        roles: dict[str, Role] = {"text": "text", "encode": "vae", "decode": "vae"}
        role = roles.get(self.config.phase)
        return self.architecture.of_role(role, self.task)[0] if role else self.architecture.dit

    def step(self, network: nn.Module) -> Callable[[], Any]:
        """What is measured."""
        made = {
            "train": self._train,
            "sample": self._sample,
            "text": self._text,
            "encode": self._encode,
            "decode": self._decode,
        }
        return made[self.config.phase](network)

    def _batch(self) -> dict[str, Any]:
        config = self.config
        return example_batch(
            self.architecture,
            self.task,
            self.numbers,
            width=config.width,
            height=config.height,
            frames=config.frames,
            batch=config.batch_size,
        )

    def _train(self, dit: nn.Module) -> Callable[[], Any]:
        config = self.config
        targets = self.architecture.dit.traits.lora
        if targets is None:
            raise ConfigError(
                f"{self.architecture.title} takes no LoRA.", fix="Try --phase sample."
            )
        torch.manual_seed(0)
        lora = Adapters.create(dit, targets, rank=config.network_dim, alpha=1.0)
        lora.attach()
        lora.train()
        dit.train()
        settings = TrainConfig(
            timestep_sampling="shift", discrete_flow_shift=3.0, learning_rate=1e-5
        )
        groups = lora.param_groups(1e-5)
        mirror = Mirror(list(lora.parameters())) if config.optimizer_offload else None
        optimizer = optim.create(
            config.optimizer_type,
            groups if mirror is None else mirror.groups(groups),
            lr=1e-5,
            arguments={},
        )
        update = Update(
            list(lora.parameters()),
            optimizer,
            schedule.create(settings, optimizer, 1000),
            None,
            settings.max_grad_norm,
            mirror=mirror,
        )
        objective = Objective(self.runtime, dit, settings, self.device, self._autocast, seed=0)
        batch = self._batch()

        def step() -> None:
            update.backward(objective.training_loss(batch, 1, 0))
            update.step()

        return step

    def _sample(self, dit: nn.Module) -> Callable[[], Any]:
        given = self.runtime.condition(move(self._batch(), self.device))
        assert given.latents is not None
        x = torch.randn_like(given.latents.float())
        t = torch.full((len(x),), 0.7, device=self.device)

        def step() -> None:
            with torch.no_grad(), self._autocast():
                for _ in range(2):
                    self.runtime.predict(dit, x, t, given)

        return step

    def _text(self, encoder: nn.Module) -> Callable[[], Any]:
        name = self.component().name
        folder = tempfile.mkdtemp()  # gone with the machine's temporary files
        nets = self._nets(encoder, {name: write_tokenizer(Path(folder) / "tokenizer")})

        def step() -> None:
            with torch.no_grad():
                self.runtime.encode_text(nets, name, ["a red ball bounces on a blue floor"])

        return step

    def _encode(self, vae: nn.Module) -> Callable[[], Any]:
        config, nets = self.config, self._nets(vae)
        shape = (config.frames, config.height, config.width, 3)
        frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        clip = Clip(name="made up", frames=frames, length=config.frames)

        def step() -> None:
            with torch.no_grad():
                self.runtime.encode_media(nets, [clip])

        return step

    def _decode(self, vae: nn.Module) -> Callable[[], Any]:
        nets, latents = self._nets(vae), self._batch()["latents"]

        def step() -> None:
            with torch.no_grad():
                self.runtime.decode(nets, latents)

        return step

    def _nets(self, network: nn.Module, tokenizers: Mapping[str, Path] | None = None) -> Nets:
        nets = Nets(self.architecture, {}, device=self.device, tokenizers=tokenizers)
        nets.put(self.component().name, network)
        return nets

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


def _dtype(component: Component) -> torch.dtype:
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
