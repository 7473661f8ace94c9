"""Latents of a video or of a single frame to the records that training reads and sampling starts from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from musubi.architectures.framepack import layout
from musubi.architectures.framepack.layout import HISTORY, REMEMBERED, Layout
from musubi.plugin import Record

_NAMES = {
    "target": "latent_indices",
    "clean": "clean_latent_indices",
    "clean_2x": "clean_latent_2x_indices",
    "clean_4x": "clean_latent_4x_indices",
}


def indices(found: Layout) -> Record:
    """A layout as the fields of a record, int64; history that there is not has none."""
    given = {name: getattr(found, part) for part, name in _NAMES.items()}
    return Record({name: torch.tensor(span) for name, span in given.items() if span})


def behind(history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """1x, 2x and 4x of a history that follows in time, the nearest first: (…, 19, h, w)."""
    near, middle, far = history.split(HISTORY, dim=-3)
    return near, middle, far


def before(history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """1x, 2x and 4x of a history that precedes in time, the nearest last: (…, 19, h, w)."""
    far, middle, near = history.split(HISTORY[::-1], dim=-3)
    return near, middle, far


def section_records(latents: torch.Tensor, window: int, *, forward: bool) -> list[Record]:
    """A record of each section of a video, in the order of time.

    The true latents stand in for what the network would have made: those behind a section, or, for
    `forward`, those before it.

    Args:
        latents: 16 F h w, in the model's scale.
        window: Latent frames of a section.
        forward: Sections are made in the order of time, as FramePack-F1 makes them.
    """
    count = (latents.shape[1] - 1) // window
    distances = layout.paddings(count)
    start = latents[:, :1]
    records: list[Record] = []
    for number in range(count):
        first = 1 + number * window
        if forward:
            found = layout.forward(window)
            known = latents[:, max(first - REMEMBERED, 0) : first]
            lacking = REMEMBERED - known.shape[1]
            near, middle, far = before(F.pad(known, (0, 0, 0, 0, lacking, 0)))
        else:
            found = layout.inverted(window, distances[count - 1 - number])
            known = latents[:, first + window : first + window + REMEMBERED]
            lacking = REMEMBERED - known.shape[1]
            near, middle, far = behind(F.pad(known, (0, 0, 0, 0, 0, lacking)))
        records.append(
            Record(
                {
                    "latents": latents[:, first : first + window],
                    "latents_clean": torch.cat([start, near], dim=1),
                    "latents_clean_2x": middle,
                    "latents_clean_4x": far,
                    **indices(found),
                }
            )
        )
    return records


def with_post(controls: Sequence[torch.Tensor], found: Layout) -> torch.Tensor:
    """Latents of control images, 16 1 h w each, and empty ones for what else `found.clean` names."""
    joined = torch.cat(list(controls), dim=1)
    return F.pad(joined, (0, 0, 0, 0, 0, len(found.clean) - joined.shape[1]))


def cell_mask(mask: np.ndarray, width: int, height: int) -> torch.Tensor:
    """A mask in pixels as a share of each latent cell, (height, width), float32 from 0 to 1.

    Args:
        mask: uint8, H W: 255 keeps, 0 hides.
        width: Latent cells from left to right.
        height: From top to bottom.
    """
    from PIL import Image

    small = Image.fromarray(np.ascontiguousarray(mask)).resize(
        (width, height), Image.Resampling.LANCZOS
    )
    return torch.from_numpy(np.asarray(small).copy()).float() / 255
