"""One case of a measurement: a step made of the same parts as a run's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from musubi.config.bench import BenchConfig
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError
from musubi.estimate.example import example_batch
from musubi.lora.adapter import Adapters
from musubi.plugin import Architecture, Clip, Component, Prompt, Variant
from musubi.plugin.architecture import Role
from musubi.testing.twins import write_tokenizer
from musubi.train import optim, schedule
from musubi.train.offload import Mirror
from musubi.train.step import FlowMatchingLoss, move
from musubi.train.update import Update
from musubi.weights.nets import Nets


class BenchCase:
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

    def lora(self, dit: nn.Module) -> Adapters:
        """Fresh adapters, attached."""
        targets = self.architecture.dit.traits.lora
        if targets is None:
            raise ConfigError(
                f"{self.architecture.title} takes no LoRA.", fix="Try --phase sample."
            )
        torch.manual_seed(0)
        lora = Adapters.create(dit, targets, rank=self.config.network_dim, alpha=1.0)
        lora.attach()
        lora.train()
        dit.train()
        return lora

    def loss(self, dit: nn.Module) -> Callable[[], torch.Tensor]:
        """The loss of a training step, with its graph: the same noise each time."""
        settings = TrainConfig(timestep_sampling="shift", discrete_flow_shift=3.0)
        objective = FlowMatchingLoss.of_one(
            self.runtime, self.task, dit, settings, self.device, self._autocast, seed=0
        )
        batch = self._batch()
        return lambda: objective.training_loss(batch, 1, 0)

    def prediction(self, dit: nn.Module) -> Callable[[], torch.Tensor]:
        """The velocity at one noise level, without gradients."""
        given = self.runtime.condition(move(self._batch(), self.device))
        assert given.latents is not None
        generator = torch.Generator(self.device).manual_seed(1)
        x = torch.randn(given.latents.shape, generator=generator, device=self.device)
        t = torch.full((len(x),), 0.7, device=self.device)

        def call() -> torch.Tensor:
            with torch.no_grad(), self._autocast():
                return self.runtime.predict(dit, x, t, given)

        return call

    def _train(self, dit: nn.Module) -> Callable[[], Any]:
        config, lora = self.config, self.lora(dit)
        settings = TrainConfig(learning_rate=1e-5)
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
        loss = self.loss(dit)

        def step() -> None:
            update.backward(loss())
            update.step()

        return step

    def _sample(self, dit: nn.Module) -> Callable[[], Any]:
        predict = self.prediction(dit)

        def step() -> None:
            predict()
            predict()

        return step

    def _text(self, encoder: nn.Module) -> Callable[[], Any]:
        name = self.component().name
        folder = tempfile.mkdtemp()  # gone with the machine's temporary files
        nets = self._nets(encoder, {name: write_tokenizer(Path(folder) / "tokenizer")})

        def step() -> None:
            with torch.no_grad():
                self.runtime.encode_text(
                    nets, name, [Prompt(text="a red ball bounces on a blue floor")]
                )

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
                for _ in self.runtime.decode(nets, latents):
                    pass

        return step

    def _nets(self, network: nn.Module, tokenizers: Mapping[str, Path] | None = None) -> Nets:
        nets = Nets(self.architecture, {}, device=self.device, tokenizers=tokenizers)
        nets.put(self.component().name, network)
        return nets

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
