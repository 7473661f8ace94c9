"""One loss: a batch is noised at a random level, and the network is asked for the velocity."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from musubi.config.optimization import TimestepOptions
from musubi.flow import times
from musubi.plugin import Runtime, is_mask
from musubi.train import seeds

Batch = Mapping[str, Any]
# Spatial patches are 2 x 2 latent cells in every family that a shift by resolution is used with.
CELLS_PER_TOKEN = 4


@dataclass(frozen=True)
class FlowMatchingLoss:
    """The loss of a run.

    Args:
        runtime: Of the architecture.
        dit: The network, adapters attached.
        options: How noise levels are drawn and weighted.
        device: Where the network is.
        autocast: Makes the context that the network runs in.
        seed: Of the run.
    """

    runtime: Runtime
    dit: nn.Module
    options: TimestepOptions
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    seed: int

    def training_loss(self, batch: Batch, step: int, number: int) -> torch.Tensor:
        """The loss of batch `number` of step `step`: float32, one number, with its graph.

        Noise and noise levels are a function of the seed, the step and the number alone; so is the
        state that the global generators are left in, which dropout draws from.
        """
        torch.manual_seed(seeds.derive(self.seed, "dropout", step, number))
        generator = seeds.generator(self.device, self.seed, "noise", step, number)
        levels = torch.Generator().manual_seed(seeds.derive(self.seed, "times", step, number))
        given = self.runtime.condition(move(batch, self.device))
        if given.latents is None:
            raise TypeError("condition() returned no latents for a training batch")
        t = self.times(given.latents, levels)
        losses = self._losses(given, t, generator)
        return (losses * times.loss_weight(self.options.weighting_scheme, t)).mean()

    @torch.no_grad()
    def losses_at(self, batch: Batch, t: float, *place: int | str) -> torch.Tensor:
        """The loss of each item at noise level `t`, unweighted, with noise that `place` decides."""
        generator = seeds.generator(self.device, self.seed, "validation", *place)
        given = self.runtime.condition(move(batch, self.device))
        if given.latents is None:
            raise TypeError("condition() returned no latents for a validation batch")
        level = torch.full((len(given.latents),), t, device=self.device)
        return self._losses(given, level, generator)

    def times(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A noise level for each item."""
        cells = latents.shape[-3] * latents.shape[-2] * latents.shape[-1]
        return draw_times(
            self.options,
            len(latents),
            tokens=max(1, cells // CELLS_PER_TOKEN),
            generator=generator,
            device=self.device,
        )

    def _losses(self, given: Any, t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x0 = given.latents.float()
        noise = torch.randn(x0.shape, generator=generator, device=self.device)
        with self.autocast():
            found = self.runtime.predict(self.dit, times.mix(x0, noise, t), t, given)
        error = found.float() - times.velocity(x0, noise)
        return error.square().flatten(1).mean(1)


def tokens_of(batch: Batch) -> int:
    """How many tokens the latents of a batch are for the network; 0 where there are no latents."""
    found = batch.get("latents")
    latents = found if isinstance(found, (list, tuple)) else [found]
    cells = (
        t.numel() // t.shape[-4] for t in latents if isinstance(t, torch.Tensor) and t.ndim > 3
    )
    return sum(cells) // CELLS_PER_TOKEN


def draw_times(
    options: TimestepOptions,
    n: int,
    *,
    tokens: int | None,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """`n` noise levels in [0, 1] as the options ask for."""
    return times.sample_times(
        n,
        mode=options.timestep_sampling,
        shift=options.discrete_flow_shift,
        sigmoid_scale=options.sigmoid_scale,
        weighting_scheme=options.weighting_scheme,
        logit_mean=options.logit_mean,
        logit_std=options.logit_std,
        mode_scale=options.mode_scale,
        min_timestep=options.min_timestep,
        max_timestep=options.max_timestep,
        preserve_shape=options.preserve_distribution_shape,
        tokens=tokens,
        generator=generator,
        device=device,
    )


def without_caption(rate: float, n: int, seed: int) -> list[bool]:
    """For each of `n` items, whether it is trained with the empty caption."""
    chance = random.Random(seed)
    return [chance.random() < rate for _ in range(n)]


def move(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The batch on the device, but for masks; copies from pinned memory do not wait."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, (list, tuple)):
            return type(value)(moved(v) for v in value)
        return value

    return {name: value if is_mask(name) else moved(value) for name, value in batch.items()}
