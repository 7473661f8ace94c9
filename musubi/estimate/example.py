"""A made-up batch: records of the right shapes and random numbers, to measure or estimate with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from musubi.plugin import Architecture, Field, Task


def example_batch(  # noqa: PLR0913 - a size has many numbers
    architecture: Architecture,
    task: Task,
    numbers: Mapping[str, Any],
    *,
    width: int,
    height: int,
    frames: int,
    batch: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """A batch as `Runtime.condition` takes it, for clips of one size.

    Args:
        architecture: Whose records.
        task: Its schema says which fields there are.
        numbers: Of the DiT.
        width: Of the video, in pixels.
        height: Of the video, in pixels.
        frames: Of the video.
        batch: How many records.
        device: Where they are put, but for masks; the meta device too.
        dtype: Of what is not a mask.

    Raises:
        ValueError: The schema does not say how long an axis usually is.
    """
    latent = dict(zip("CFHW", task.shape.latent_shape(width, height, frames), strict=True))
    made: dict[str, Any] = {}
    generator = None
    if torch.device(device).type != "meta":
        generator = torch.Generator(device).manual_seed(0)
    for field in (*task.schema.media, *task.schema.text):
        if field.optional:
            continue
        shape = _shape(field, numbers, latent)
        if field.is_mask:
            made[field.name] = torch.ones((batch, *shape), dtype=torch.int64)  # on the host
            continue
        if field.whole:
            made[field.name] = torch.zeros((batch, *shape), dtype=torch.int64, device=device)
            continue
        values = torch.randn((batch, *shape), generator=generator, device=device, dtype=dtype)
        if field.many:
            made[field.name] = [[value] for value in values]
        else:
            made[field.name] = list(values) if field.varlen else values
    return made


def _shape(field: Field, numbers: Mapping[str, Any], latent: Mapping[str, int]) -> tuple[int, ...]:
    lengths = dict(latent) if field.is_latents else {}
    lengths |= {axis: numbers[n] if isinstance(n, str) else n for axis, n in field.usual}
    lengths |= dict(field.sizes)
    missing = [axis for axis in field.dims if axis not in lengths]
    if missing:
        raise ValueError(
            f"the schema does not say how long {missing[0]!r} of {field.name!r} usually is"
        )
    return tuple(lengths[axis] for axis in field.dims)
