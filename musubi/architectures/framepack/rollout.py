"""Videos section by section, and single frames: what the engine is asked to solve, one after another."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from musubi.architectures.framepack import caching, layout
from musubi.architectures.framepack.by_section import by_section
from musubi.architectures.framepack.layout import REMEMBERED, Layout
from musubi.architectures.framepack.options import (
    chosen_keys,
    paddings_of,
    sections_of,
    text_name,
    window_of,
)
from musubi.plugin import Conditioning, Recipe, Section, Task

Rollout = Generator[Section, torch.Tensor, torch.Tensor]


def by_sections(task: Task, recipe: Recipe, given: Conditioning, device: torch.device) -> Rollout:
    """A video; the last section in time is made first, or, with `f1`, the first one.

    What was made is kept in host memory, and 19 latent frames of it on the device: the need for
    memory there does not grow with the video.
    """
    window, count = window_of(recipe.options), sections_of(recipe)
    forward = bool(recipe.options.get("f1"))
    order = range(count) if forward else range(count)[::-1]
    distances = paddings_of(recipe)
    images = by_section(recipe.options.get("image_path") or "")
    shown = [list(images).index(key) for key in chosen_keys(images, count)]
    texts = chosen_keys(by_section(recipe.prompt), count)
    starts, pictures = given.inputs["starts"], given.inputs["pictures"]
    draw = _noise(task, recipe, window)
    made: list[torch.Tensor] = [starts[shown[0]].float().cpu()] if forward else []
    history = _remembered(given, made, device)
    for step, number in enumerate(order):
        start = starts[shown[number]].to(device, torch.float32)
        if forward:
            found = layout.forward(window)
            near, middle, far = caching.before(history)
        else:
            found = layout.inverted(window, distances[step])
            near, middle, far = caching.behind(history)
        clean = torch.cat([start, near], dim=2)
        x = yield Section(
            noise=next(draw).to(device),
            inputs={
                **_told(task, recipe),
                **_history(found, device, clean, middle, far),
                "image": pictures[shown[number]].to(device),
            },
            text=text_name(texts[number]),
            so_far=torch.cat(made, dim=2) if step else None,
        )
        if forward:
            made.append(x.float().cpu())
            history = torch.cat([history, x.float()], dim=2)[:, :, -REMEMBERED:]
        else:
            made.insert(0, x.float().cpu())
            history = torch.cat([x.float(), history], dim=2)[:, :, :REMEMBERED]
    if not forward:
        made.insert(0, starts[shown[0]].float().cpu())
    return torch.cat(made, dim=2)


def one_frame(task: Task, recipe: Recipe, given: Conditioning, device: torch.device) -> Rollout:
    """A single frame; what surrounds it is in its record."""
    noise = next(_noise(task, recipe, 1)).to(device)
    return (yield Section(noise=noise, inputs=_told(task, recipe)))


def _remembered(
    given: Conditioning, made: list[torch.Tensor], device: torch.device
) -> torch.Tensor:
    """The history before the first section: nothing but a start or an end image, 1 C 19 h w."""
    start = given.inputs["starts"][0]
    shape = (*start.shape[:2], REMEMBERED, *start.shape[3:])
    history = torch.zeros(shape, device=device)
    if made:
        history[:, :, -1:] = made[0].to(device)
    end = given.inputs.get("end")
    if end is not None:
        history[:, :, :1] = end.to(history)
    return history


def _history(
    found: Layout,
    device: torch.device,
    clean: torch.Tensor,
    middle: torch.Tensor,
    far: torch.Tensor,
) -> dict[str, Any]:
    def row(span: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor([span], device=device)

    return {
        "indices": row(found.target),
        "clean": (clean, row(found.clean)),
        "clean_2x": (middle, row(found.clean_2x)),
        "clean_4x": (far, row(found.clean_4x)),
    }


def _told(task: Task, recipe: Recipe) -> dict[str, Any]:
    """Embedded guidance, and how positions are scaled at high noise."""
    guidance = recipe.options.get("embedded_cfg_scale")
    if guidance is None:
        guidance = task.sampling.options["embedded_cfg_scale"]
    factor = recipe.options.get("rope_scaling_factor")
    return {
        "guidance": guidance,
        "rope_threshold": recipe.options.get("rope_scaling_timestep_threshold"),
        "rope_factor": 0.5 if factor is None else factor,
    }


def _noise(task: Task, recipe: Recipe, window: int) -> Generator[torch.Tensor, None, None]:
    """Noise of section after section, 1 C window h w: one generator runs over all of them."""
    geometry = task.shape
    generator = torch.Generator().manual_seed(recipe.seed)
    size = (recipe.height // geometry.stride[1], recipe.width // geometry.stride[2])
    while True:
        yield torch.randn((1, geometry.channels, window, *size), generator=generator)
