"""Guidance around one network: classifier-free unless a task has its own, and the steps it skips.

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
    """How a guided velocity is made of calls of the network at one place: `Task.guidance`."""

    def __call__(
        self,
        call: Callable[[Conditioning], torch.Tensor],
        positive: Conditioning,
        negative: Conditioning,
        recipe: Recipe,
        moment: Moment,
    ) -> torch.Tensor: ...


def cfg_steps(mode: SkipMode, ratio: float | None, steps: int) -> tuple[bool, ...]:
    """At which steps guidance applies; at the others the conditional prediction stands alone.

    The mode names what is left out: "early" applies guidance to the last part of the steps, "late"
    to the first, "middle" to both ends, "early_late" to the middle, "alternate" now and then.

    Args:
        mode: Which steps go without; "none" leaves none out.
        ratio: The part of the steps to which guidance applies; None: all.
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
    """The velocity that a solver follows: `call` with guidance around it.

    Args:
        call: One call of the network.
        positive: What is asked for.
        negative: What is asked against; None: nothing is, and there is no guidance.
        recipe: What is made.
        times: The noise level that the network is told at each step.
        hook: The task's own guidance; classifier-free when None.
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
