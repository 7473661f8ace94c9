"""FramePack's noise levels, and its guidance: hooks of the tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from musubi.errors import ConfigError
from musubi.plugin import Conditioning, Moment, Recipe

# The logarithm of the shift is linear in the tokens of a section, up to a shift of 7.
LOW, HIGH = (256, 0.5), (4096, 1.15)
LARGEST = 7.0


def sigmas(recipe: Recipe, tokens: int) -> torch.Tensor:
    """Noise levels of a section, float32 (steps + 1,), falling to 0.

    Args:
        recipe: Its `flow_shift`, or by default one that grows with the size.
        tokens: Tokens of the section that is denoised.

    Raises:
        ConfigError: No step, or a shift that is not positive.
    """
    if recipe.steps < 1:
        raise ConfigError(
            f"{recipe.steps} denoising steps make nothing.", fix="Give --infer_steps 1 or more."
        )
    if recipe.flow_shift is not None and recipe.flow_shift <= 0:
        raise ConfigError(
            f"A flow shift of {recipe.flow_shift:g} is not possible.", fix="Give --flow_shift > 0."
        )
    mu = log_shift(tokens) if recipe.flow_shift is None else math.log(recipe.flow_shift)
    line = torch.linspace(1, 0, recipe.steps + 1)
    # In this order of operations, so that float32 rounds as the official code's does.
    return math.exp(mu) / (math.exp(mu) + (1 / line - 1))


def log_shift(tokens: int) -> float:
    """Logarithm of the shift for that many tokens.

    >>> round(math.exp(log_shift(80 * 80 // 4)), 2)
    2.07
    """
    slope = (HIGH[1] - LOW[1]) / (HIGH[0] - LOW[0])
    return min(LOW[1] + slope * (tokens - LOW[0]), math.log(LARGEST))


def guided(
    call: Callable[[Conditioning], torch.Tensor],
    positive: Conditioning,
    negative: Conditioning | None,
    recipe: Recipe,
    moment: Moment,
) -> torch.Tensor:
    """Classifier-free guidance, then its spread brought back towards that of the plain prediction.

    Lin et al., https://arxiv.org/abs/2305.08891, section 3.4. `guidance_rescale` says how far.
    """
    conditional = call(positive)
    if negative is None:
        return conditional
    unconditional = call(negative)
    velocity = unconditional + recipe.guidance_scale * (conditional - unconditional)
    part: Any = recipe.options.get("guidance_rescale") or 0.0
    if part == 0:
        return velocity
    axes = tuple(range(1, velocity.ndim))
    spread = conditional.std(dim=axes, keepdim=True) / velocity.std(dim=axes, keepdim=True)
    return part * (velocity * spread) + (1 - part) * velocity
