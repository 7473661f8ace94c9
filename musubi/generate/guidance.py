"""Guidance: classifier-free unless a task has its own kind, and the steps without guidance.

Guided velocity: vu + g (vc - vu) (Ho and Salimans 2022), from two calls of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch

from musubi.flow.solvers import Predict
from musubi.plugin.runtime import Conditioning, Moment, Recipe

SkipMode = Literal["early", "late", "middle", "early_late", "alternate", "none"]
SKIP_MODES: tuple[SkipMode, ...] = ("early", "late", "middle", "early_late", "alternate", "none")

Call = Callable[[torch.Tensor, torch.Tensor, Conditioning], torch.Tensor]
"""`(x, t, given) -> velocity`: one call of the network."""


class Hook(Protocol):
    """Computes the guided velocity of one step from calls of the network: `Task.guidance`."""

    def __call__(
        self,
        call: Callable[[Conditioning], torch.Tensor],
        positive: Conditioning,
        negative: Conditioning,
        recipe: Recipe,
        moment: Moment,
    ) -> torch.Tensor: ...


def cfg_steps(mode: SkipMode, ratio: float | None, steps: int) -> tuple[bool, ...]:
    """At which steps guidance applies; the other steps use the conditional prediction alone.

    The mode names the steps without guidance: with "early", guidance applies to the last part of
    the steps; with "late", to the first part; with "middle", to both ends; with "early_late", to
    the middle; with "alternate", to steps at even distances.

    Args:
        mode: Which steps run without guidance; "none": no step does.
        ratio: Share of the steps with guidance; None: all.
        steps: How many there are.
    """
    if mode == "none" or ratio is None:
        return (True,) * steps
    count = int(steps * ratio)
    if mode == "alternate":
        return _alternate(ratio, steps)
    start = {
        "early": steps - count,
        "late": 0,
        "early_late": (steps - count) // 2,
        "middle": count // 2,
    }[mode]
    if mode == "middle":
        return tuple(not start <= i < start + steps - count for i in range(steps))
    return tuple(start <= i < start + count for i in range(steps))


def _alternate(ratio: float, steps: int) -> tuple[bool, ...]:
    applied: list[bool] = []
    weight = 0.0
    for _ in range(steps):
        weight += ratio
        applied.append(weight >= 1)
        weight -= applied[-1]
    return tuple(applied)


def guided(
    call: Call,
    positive: Conditioning,
    negative: Conditioning | None,
    recipe: Recipe,
    times: Sequence[float],
    hook: Hook | None = None,
) -> Predict:
    """Make the function that a solver calls: it adds guidance to `call`.

    Args:
        call: One call of the network.
        positive: Conditioning of the prompt.
        negative: Conditioning of the negative prompt; None: no guidance.
        recipe: What is made.
        times: The noise level that the network gets at each step.
        hook: The task's own guidance; None: classifier-free guidance.
    """
    steps = len(times)
    applies = cfg_steps(
        recipe.options.get("cfg_skip_mode") or "none", recipe.options.get("cfg_apply_ratio"), steps
    )
    guide: Hook = classifier_free if hook is None else hook

    def predict(x: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
        if negative is None or not applies[i]:
            return call(x, t, positive)
        moment = Moment(step=i, steps=steps, t=times[i])
        return guide(lambda given: call(x, t, given), positive, negative, recipe, moment)

    return predict


def classifier_free(
    call: Callable[[Conditioning], torch.Tensor],
    positive: Conditioning,
    negative: Conditioning,
    recipe: Recipe,
    moment: Moment,
) -> torch.Tensor:
    """Vu + g (vc - vu), from two calls of the network."""
    conditional = call(positive)
    unconditional = call(negative)
    return unconditional + recipe.guidance_scale * (conditional - unconditional)
