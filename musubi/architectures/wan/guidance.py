"""Wan's guidance: by expert, and with blocks left out (skip-layer guidance)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from musubi.architectures.wan.hooks import BOUNDARY_I2V, BOUNDARY_T2V, boundary, layer_skip
from musubi.plugin import Conditioning, Moment, Recipe

if TYPE_CHECKING:
    import torch

    Call = Callable[[Conditioning], torch.Tensor]


def single(
    call: Call, positive: Conditioning, negative: Conditioning, recipe: Recipe, moment: Moment
) -> torch.Tensor:
    """Guidance of one denoiser."""
    return _guided(call, positive, negative, recipe, moment, recipe.guidance_scale)


def experts_t2v(
    call: Call, positive: Conditioning, negative: Conditioning, recipe: Recipe, moment: Moment
) -> torch.Tensor:
    """Guidance of Wan2.2's text-to-video experts, each with a scale of its own."""
    scale = _scale(recipe, moment, BOUNDARY_T2V)
    return _guided(call, positive, negative, recipe, moment, scale)


def experts_i2v(
    call: Call, positive: Conditioning, negative: Conditioning, recipe: Recipe, moment: Moment
) -> torch.Tensor:
    """Guidance of Wan2.2's image-to-video experts, each with a scale of its own."""
    scale = _scale(recipe, moment, BOUNDARY_I2V)
    return _guided(call, positive, negative, recipe, moment, scale)


def _scale(recipe: Recipe, moment: Moment, default: float) -> float:
    high = recipe.options.get("guidance_scale_high_noise")
    if high is None or moment.t < boundary(recipe.options, default):
        return recipe.guidance_scale
    return float(high)


def _guided(
    call: Call,
    positive: Conditioning,
    negative: Conditioning,
    recipe: Recipe,
    moment: Moment,
    scale: float,
) -> torch.Tensor:
    conditional = call(positive)
    skip = layer_skip(recipe)
    skipping = skip is not None and skip.active(moment.step, moment.steps)
    if scale == 1 and not skipping:
        return conditional
    weakened = None
    if skip is not None and skipping:
        weakened = call(negative.plus(skip_blocks=skip.layers))
        if skip.mode == "uncond":
            return weakened + scale * (conditional - weakened)
    unconditional = call(negative)
    velocity = unconditional + scale * (conditional - unconditional)
    if skip is not None and weakened is not None:
        velocity = velocity + skip.scale * (conditional - weakened)
    return velocity
