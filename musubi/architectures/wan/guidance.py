"""Guidance of one denoiser or of two experts, and skip-layer guidance: a third call of the network,
with some blocks left out and the negative text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from musubi.architectures.wan.experts import BOUNDARY_I2V, BOUNDARY_T2V, boundary
from musubi.errors import ConfigError, counted
from musubi.plugin import Conditioning, Moment, Recipe


@dataclass(frozen=True, kw_only=True)
class LayerSkip:
    """What the options `slg_*` ask for.

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
    """What a recipe asks for; None when it asks for none.

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


def check(recipe: Recipe) -> None:
    """Refuse what cannot be, before anything is loaded.

    Raises:
        ConfigError: See `layer_skip`.
    """
    layer_skip(recipe)


def check_layers(recipe: Recipe, numbers: Mapping[str, Any]) -> None:
    """Refuse to leave out blocks that a denoiser does not have.

    Raises:
        ConfigError: `slg_layers` names one of them.
    """
    skip, count = layer_skip(recipe), numbers["num_layers"]
    missing = [n for n in (skip.layers if skip else ()) if not 0 <= n < count]
    if missing:
        raise ConfigError(
            f"--slg_layers names block {missing[0]}, and this model has {counted(count, 'block')}.",
            fix=f"Give numbers from 0 to {count - 1}.",
        )


def texts(recipe: Recipe) -> dict[str, str]:
    """The prompt, and the negative prompt where some step reads it."""
    found = {"prompt": recipe.prompt}
    scales = (recipe.guidance_scale, recipe.options.get("guidance_scale_high_noise"))
    guided_at_all = any(scale is not None and scale != 1 for scale in scales)
    if guided_at_all or layer_skip(recipe) is not None:
        found["negative"] = recipe.negative_prompt
    return found


Call = Callable[[Conditioning], torch.Tensor]


def guided(
    call: Call, positive: Conditioning, negative: Conditioning, recipe: Recipe, moment: Moment
) -> torch.Tensor:
    """Classifier-free guidance, with the skip-layer call where it is asked for."""
    return _guided(call, positive, negative, recipe, moment, recipe.guidance_scale)


def guided_t2v(
    call: Call, positive: Conditioning, negative: Conditioning, recipe: Recipe, moment: Moment
) -> torch.Tensor:
    """The same for Wan2.2's text-to-video experts, each with a scale of its own."""
    scale = _scale(recipe, moment, BOUNDARY_T2V)
    return _guided(call, positive, negative, recipe, moment, scale)


def guided_i2v(
    call: Call, positive: Conditioning, negative: Conditioning, recipe: Recipe, moment: Moment
) -> torch.Tensor:
    """The same for Wan2.2's image-to-video experts, each with a scale of its own."""
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
    g: float,
) -> torch.Tensor:
    conditional = call(positive)
    skip = layer_skip(recipe)
    if skip is None or not skip.active(moment.step, moment.steps):
        if g == 1:
            return conditional
        unconditional = call(negative)
        return unconditional + g * (conditional - unconditional)
    skipped = call(negative.plus(skip_blocks=skip.layers)).to(conditional)
    if skip.mode == "uncond":
        return skipped + g * (conditional - skipped)
    unconditional = call(negative)
    velocity = unconditional + g * (conditional - unconditional)
    return velocity + skip.scale * (conditional - skipped)
