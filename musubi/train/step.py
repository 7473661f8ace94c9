"""The training loss: add noise of a random level to a batch, and let the network predict the velocity."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from musubi.cache.batch import CLASS_CAPTIONS, HAS_CLASS, REGULARIZATION
from musubi.config.losses import LossType
from musubi.config.optimization import TimestepOptions
from musubi.flow import losses, times
from musubi.flow.experts import Experts
from musubi.memory.turns import Turns
from musubi.plugin import Runtime, Shift, Task, is_mask
from musubi.plugin.record import LOSS_WEIGHT
from musubi.train import seeds

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class FlowMatchingLoss:
    """The loss of a run.

    Args:
        runtime: The runtime of the task.
        task: The trained task; its geometry gives the number of tokens.
        denoisers: Name → the network with its adapters attached: one network, or several experts.
        experts: Chooses the denoiser for a noise level.
        options: How noise levels are drawn and weighted.
        device: Where the networks are.
        autocast: Makes the context that a network runs in.
        seed: Seed of the run.
        shifts: The architecture's own values of `--timestep_sampling` → the shift that each means.
        base: Makes the context in which the networks answer as they did before they were trained.
        turns: Of several denoisers, brings those to the device that work; None: all stay there.
    """

    runtime: Runtime
    task: Task
    denoisers: Mapping[str, nn.Module]
    experts: Experts
    options: TimestepOptions
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    seed: int
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    base: Callable[[], AbstractContextManager[None]] | None = None
    turns: Turns | None = None

    @classmethod
    def of_one(
        cls,
        runtime: Runtime,
        task: Task,
        dit: nn.Module,
        options: TimestepOptions,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        seed: int,
    ) -> FlowMatchingLoss:
        """The loss of a single denoiser, which handles every noise level."""
        name = task.denoisers[0]
        return cls(
            runtime=runtime,
            task=task,
            denoisers={name: dit},
            experts=Experts(task, {}, [name]),
            options=options,
            device=device,
            autocast=autocast,
            seed=seed,
        )

    def training_loss(self, batch: Batch, step: int, number: int) -> torch.Tensor:
        """The loss of batch `number` of step `step`: float32, one number, with its graph.

        Noise and noise levels depend only on the seed, the step and the number. So does the state
        of the global generators, which dropout uses.
        """
        regularization = bool(batch.get(REGULARIZATION))
        keeps = regularization and self.options.prior_preservation
        found = self._drawn(batch, step, number, keeps=keeps).mean()
        share = self.options.prior_loss_weight
        return found * share if regularization and share is not None else found

    def preserving_loss(self, batch: Batch, step: int, number: int) -> torch.Tensor | None:
        """How far the prediction for the class word has moved, with the same noise as
        `training_loss`. None if no item of the batch has a caption with the class word.
        """
        captions = batch.get(CLASS_CAPTIONS)
        if captions is None:
            return None
        found = self._drawn({**batch, **captions}, step, number, keeps=True)
        counts = torch.tensor(batch[HAS_CLASS], dtype=found.dtype).to(found.device)
        share = self.options.diff_output_preservation_multiplier
        return (found * counts).mean() * (1.0 if share is None else share)

    def _drawn(self, batch: Batch, step: int, number: int, *, keeps: bool) -> torch.Tensor:
        """The loss of each item, weighted by its noise level."""
        torch.manual_seed(seeds.derive(self.seed, "dropout", step, number))
        generator = seeds.generator(self.device, self.seed, "noise", step, number)
        levels = torch.Generator().manual_seed(seeds.derive(self.seed, "times", step, number))
        moved = move(batch, self.device)
        given = self._condition(moved)
        t = self.times(given.latents, levels)
        found = self._losses(moved, given, t, generator, self.options.loss_type, keeps=keeps)
        return found * weight_at(self.options, t)

    @torch.no_grad()
    def losses_at(self, batch: Batch, t: float, *place: int | str) -> torch.Tensor:
        """The squared error of each item at noise level `t`, with noise that depends on `place`. No
        option of the loss changes this error, so that runs can be compared.
        """
        generator = seeds.generator(self.device, self.seed, "validation", *place)
        moved = move(batch, self.device)
        given = self._condition(moved)
        level = torch.full((len(given.latents),), t, device=self.device)
        return self._losses(moved, given, level, generator, "l2")

    def times(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A noise level for each item."""
        return draw_times(
            self.options,
            len(latents),
            tokens=self.task.shape.tokens(*latents.shape[-3:]),
            generator=generator,
            device=self.device,
            span=self.experts.range,
            shifts=self.shifts,
        )

    def _condition(self, moved: Batch) -> Any:
        given = self.runtime.condition(moved)
        if given.latents is None:
            raise TypeError("condition() returned no latents for a training batch")
        return given

    def _losses(
        self,
        batch: Batch,
        given: Any,
        t: torch.Tensor,
        generator: torch.Generator,
        kind: LossType,
        *,
        keeps: bool = False,
    ) -> torch.Tensor:
        x0 = given.latents.float()
        noise = torch.randn(x0.shape, generator=generator, device=self.device)
        x, target = times.mix(x0, noise, t), times.velocity(x0, noise)
        if keeps:
            target = self._of_base(batch, x, t, given)
        with self.autocast():
            found = self._predicted(batch, x, t, given)
        c = losses.huber_c(self.options.huber_schedule or "constant", t, **self.options.huber)
        error = losses.distance(found.float() - target, kind, c.reshape(-1, *[1] * (x0.ndim - 1)))
        weight = self._weight(batch, given)
        if weight is None:
            return error.flatten(1).mean(1)
        weight = weight.float().expand_as(error)  # the mean over what counts
        return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)

    @torch.no_grad()
    def _of_base(self, batch: Batch, x: torch.Tensor, t: torch.Tensor, given: Any) -> torch.Tensor:
        """The prediction of the untrained networks."""
        if self.base is None:
            raise TypeError("what is trained has no base to be held to")
        with self.base(), self.autocast():
            return self._predicted(batch, x, t, given).float()

    def _weight(self, batch: Batch, given: Any) -> torch.Tensor | None:
        """The weight of each number in the loss: the architecture's weight times the mask."""
        mask = batch.get(LOSS_WEIGHT.name)
        if mask is None:
            return given.weight
        outside = self.options.unmasked_weight or 0.0
        weight = (outside + (1 - outside) * mask.float())[:, None]
        return weight if given.weight is None else weight * given.weight.float()

    def _predicted(
        self, batch: Batch, x: torch.Tensor, t: torch.Tensor, given: Any
    ) -> torch.Tensor:
        """The velocity; each item is predicted by the denoiser for its noise level."""
        if len(self.denoisers) == 1:
            return self.runtime.predict(next(iter(self.denoisers.values())), x, t, given)
        items: dict[str, list[int]] = {}
        for i, level in enumerate(t.tolist()):
            items.setdefault(self.experts.at(level), []).append(i)
        if self.turns is not None:
            self.turns.take(items)
        found: torch.Tensor | None = None
        for name, indices in items.items():
            part = given if len(items) == 1 else self._condition(_items(batch, indices))
            made = self.runtime.predict(self.denoisers[name], x[indices], t[indices], part)
            found = made.new_zeros(x.shape) if found is None else found
            found = found.index_copy(0, torch.tensor(indices, device=x.device), made)
        assert found is not None
        return found


def _items(batch: Batch, indices: list[int]) -> dict[str, Any]:
    """The items of a batch with these indices."""
    return {
        name: value[indices] if isinstance(value, torch.Tensor) else [value[i] for i in indices]
        for name, value in batch.items()
    }


def tokens_of(batch: Batch, task: Task) -> int:
    """How many tokens the latents of a batch give; 0 if there are no latents."""
    found = batch.get("latents")
    latents = found if isinstance(found, (list, tuple)) else [found]
    return sum(
        task.shape.tokens(*t.shape[-3:]) * (t[..., 0, 0, 0].numel() // t.shape[-4])
        for t in latents
        if isinstance(t, torch.Tensor) and t.ndim > 3
    )


def draw_times(
    options: TimestepOptions,
    n: int,
    *,
    tokens: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    span: tuple[float, float] = (0.0, 1.0),
    shifts: Mapping[str, Shift] | None = None,
) -> torch.Tensor:
    """Draw `n` noise levels in [0, 1].

    Args:
        options: The options of the distribution.
        n: How many levels to draw.
        tokens: Number of tokens of a sample, for shifts that depend on it.
        generator: The random generator.
        device: Device of the result.
        span: The levels that one of the trained denoisers handles. Other levels are drawn again,
            unless the options set a lowest or a highest level.
        shifts: The architecture's own values of `--timestep_sampling`.
    """
    mode, shift = options.timestep_sampling, options.discrete_flow_shift
    own = (shifts or {}).get(mode)
    if own is not None:
        mode, shift = "shift", times.shift_at(tokens, own.low, own.high)
    low, high = options.min_timestep, options.max_timestep
    preserve = options.preserve_distribution_shape
    if span != (0.0, 1.0) and low is None and high is None:
        low, high, preserve = span[0] * times.LEVELS, span[1] * times.LEVELS, True
    return times.sample_times(
        n,
        mode=mode,
        shift=shift,
        sigmoid_scale=options.sigmoid_scale,
        weighting_scheme=options.weighting_scheme,
        logit_mean=options.logit_mean,
        logit_std=options.logit_std,
        mode_scale=options.mode_scale,
        min_timestep=low,
        max_timestep=high,
        preserve_shape=preserve,
        tokens=tokens,
        generator=generator,
        device=device,
    )


def weight_at(options: TimestepOptions, t: torch.Tensor) -> torch.Tensor:
    """The weight of each item's loss, from its noise level: float32, shaped like `t`."""
    if options.min_snr_gamma is not None:
        return losses.min_snr_weight(t, options.min_snr_gamma)
    return times.loss_weight(options.weighting_scheme, t)


def without_caption(rate: float, n: int, seed: int) -> list[bool]:
    """For each of `n` items, whether it is trained with the empty caption."""
    chance = random.Random(seed)
    return [chance.random() < rate for _ in range(n)]


def move(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Copy the batch to the device, without waiting. Masks stay on the host; fields that only the
    engine reads are left out.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, (list, tuple)):
            return type(value)(moved(v) for v in value)
        return value

    own = (REGULARIZATION, CLASS_CAPTIONS, HAS_CLASS)
    return {
        name: value if is_mask(name) else moved(value)
        for name, value in batch.items()
        if name not in own
    }
