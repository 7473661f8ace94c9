"""Classifier-free guidance, where it is skipped, and skip-layer guidance, around one network.

Guided velocity: vu + g (vc - vu) (Ho and Salimans 2022), from two calls of the network.
Skip-layer guidance adds a third, with some blocks left out and the negative inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from musubi.errors import ConfigError
from musubi.flow.solvers import Predict
from musubi.plugin.runtime import Conditioning, Recipe

SkipMode = Literal["early", "late", "middle", "early_late", "alternate", "none"]
SKIP_MODES: tuple[SkipMode, ...] = ("early", "late", "middle", "early_late", "alternate", "none")

Call = Callable[[torch.Tensor, torch.Tensor, Conditioning], torch.Tensor]
"""`(x, t, given) -> velocity`: one call of the network."""


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


@dataclass(frozen=True, kw_only=True)
class LayerSkip:
    """Skip-layer guidance.

    Args:
        layers: Numbers of the blocks to leave out.
        mode: "original" adds scale (vc - vskip) to the guided velocity; "uncond" puts the call
            with blocks left out in the place of the unconditional one.
        scale: Of "original".
        start: Where it begins, as a part of the steps.
        end: Where it ends.
    """

    layers: tuple[int, ...]
    mode: Literal["original", "uncond"]
    scale: float = 3.0
    start: float = 0.0
    end: float = 0.3

    def active(self, i: int, steps: int) -> bool:
        """Whether step `i` of `steps` uses it."""
        return int(self.start * steps) <= i < int(self.end * steps)


def layer_skip(recipe: Recipe) -> LayerSkip | None:
    """What the recipe's options `slg_*` ask for, of an architecture that has them.

    Raises:
        ConfigError: `slg_layers` is not a list of block numbers, or there is no `slg_mode`.
    """
    options = recipe.options
    layers, mode = options.get("slg_layers"), options.get("slg_mode")
    if layers is None and mode is None:
        return None
    if layers is None or mode is None:
        raise ConfigError(
            "--slg_layers and --slg_mode mean nothing without each other.", fix="Give both."
        )
    try:
        numbers = tuple(int(part) for part in str(layers).split(","))
    except ValueError as error:
        raise ConfigError(
            f"--slg_layers {layers!r} is not a list of block numbers.", fix="Write 9,10, say."
        ) from error
    return LayerSkip(
        layers=numbers,
        mode=mode,
        scale=options.get("slg_scale", 3.0),
        start=options.get("slg_start", 0.0),
        end=options.get("slg_end", 0.3),
    )


def needs_negative(recipe: Recipe) -> bool:
    """Whether any step reads the negative prompt: with a guidance scale of 1 none does."""
    return recipe.guidance_scale != 1 or layer_skip(recipe) is not None


def guided(
    call: Call, positive: Conditioning, negative: Conditioning | None, recipe: Recipe
) -> Predict:
    """The velocity that a solver follows: `call` with guidance around it."""
    g, steps = recipe.guidance_scale, recipe.steps
    skip = layer_skip(recipe)
    applies = cfg_steps(
        recipe.options.get("cfg_skip_mode") or "none", recipe.options.get("cfg_apply_ratio"), steps
    )

    def predict(x: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
        conditional = call(x, t, positive)
        if negative is None or not applies[i]:
            return conditional
        skipping = skip is not None and skip.active(i, steps)
        skipped = (
            call(x, t, negative.plus(skip_blocks=skip.layers)).to(conditional)
            if skip is not None and skipping
            else None
        )
        if skip is not None and skipped is not None and skip.mode == "uncond":
            return skipped + g * (conditional - skipped)
        unconditional = call(x, t, negative)
        velocity = unconditional + g * (conditional - unconditional)
        if skip is not None and skipped is not None:
            velocity = velocity + skip.scale * (conditional - skipped)
        return velocity

    return predict
