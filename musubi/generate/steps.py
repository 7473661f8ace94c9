"""MagCache around a denoising run: what the options `--magcache_...` mean for a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from musubi.errors import ConfigError
from musubi.flow.step_cache import MagCache, StepCache, skipped
from musubi.plugin import Conditioning, Recipe, Sampling

BUILT_IN = "0"
"""Of `--magcache_mag_ratios`: the ratios that the task brings."""


class Steps:
    """Decides which steps of a recipe skip the network's blocks, or measures the ratios of their
    residuals.

    Without a recipe or without MagCache options, every call runs in full.

    Attributes:
        step: Number of the step that is taken now.
    """

    step: int = 0

    def __init__(self, recipe: Recipe | None = None, sampling: Sampling | None = None) -> None:
        options = {} if recipe is None else recipe.options
        self._measuring = bool(options.get("magcache_calibration"))
        self._policy: MagCache | None = None
        if sampling is not None and not self._measuring:
            self._policy = policy_of(options, sampling)
        self._caches: dict[nn.Module, StepCache] = {}
        self._names: dict[int, str] = {}
        self._schedule: tuple[bool, ...] = ()

    def start(self, steps: int, positive: Conditioning, negative: Conditioning | None) -> None:
        """Start a new denoising loop, and forget earlier residuals."""
        self._names = {id(positive): "positive", id(negative): "negative"}
        if self._policy is not None:
            self._schedule = skipped(self._policy, steps)
        for cache in self._caches.values():
            cache.start()

    def run(
        self,
        network: nn.Module,
        stacks: Sequence[str],
        given: Conditioning,
        call: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """One call of the network, in full or without its blocks."""
        name = self._names.get(id(given))
        if name is None or not (self._measuring or self._policy):
            return call()
        if network not in self._caches:
            self._caches[network] = StepCache(
                network, stacks, self._schedule, measuring=self._measuring
            )
        return self._caches[network].run(name, self.step, call)

    def measured(self) -> list[str]:
        """The measured ratios, as the option to use them; empty if nothing was measured."""
        if not self._measuring:
            return []
        return [
            "--magcache_mag_ratios " + ",".join(f"{ratio:.5f}" for ratio in cache.ratios())
            for cache in self._caches.values()
        ]


def policy_of(options: dict[str, Any] | Any, sampling: Sampling) -> MagCache | None:
    """What `--magcache_mag_ratios` and its companions ask for; None: no step is left out.

    Raises:
        ConfigError: The ratios are no list of numbers, or the task brings none.
    """
    text = options.get("magcache_mag_ratios")
    if text is None:
        return None
    if str(text).strip() == BUILT_IN:
        ratios = sampling.mag_ratios
        if not ratios:
            raise ConfigError(
                "No ratios were measured for this task.",
                fix="Measure them: --magcache_calibration prints what --magcache_mag_ratios takes.",
            )
    else:
        try:
            ratios = tuple(float(part) for part in str(text).split(","))
        except ValueError as error:
            raise ConfigError(
                f"--magcache_mag_ratios {text!r} is not a list of numbers.",
                fix="Write 0 for those of the model, or what --magcache_calibration prints.",
            ) from error
    return MagCache(
        ratios=ratios,
        retention=options.get("magcache_retention_ratio", 0.2),
        threshold=options.get("magcache_threshold", 0.24),
        k=options.get("magcache_k", 6),
    )
