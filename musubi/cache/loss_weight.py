"""Masks in pixels become weights of latent cells: how much of each cell counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from musubi.plugin.architecture import Task
from musubi.plugin.record import LOSS_WEIGHT
from musubi.plugin.runtime import Clip, Record


def weighted(clip: Clip, records: Sequence[Record], task: Task) -> tuple[Record, ...]:
    """The records of a clip, with how much each of their cells counts.

    Latents end with the frames of the clip; so does the last of its sections, which follow one another
    in time.

    Args:
        clip: With its mask; without one the records are returned as they are.
        records: As the architecture gave them, each with its latents.
        task: What they are for.
    """
    if clip.mask is None:
        return tuple(records)
    height, width = records[0]["latents"].shape[-2:]
    whole = cells(clip.mask, len(clip.frames), task.shape.period, (height, width))
    out: list[Record] = []
    for i, record in enumerate(records):
        frames = record["latents"].shape[-3]
        first = len(whole) - (len(records) - i) * frames
        if len(whole) == 1:  # one weight for whatever frames there are
            found = whole
        elif task.schema.sectioned:
            found = whole[first : first + frames]
        else:  # frames in front of the clip's, of reference images say, count as they are
            found = torch.cat([whole.new_ones(frames - len(whole), height, width), whole])
        out.append(Record({**record, LOSS_WEIGHT.name: found.clone()}))
    return tuple(out)


def cells(mask: np.ndarray, frames: int, period: int, size: tuple[int, int]) -> torch.Tensor:
    """The mean of a mask over each latent cell: float32, F H W, 0 to 1.

    Args:
        mask: uint8, F H W 1, of one frame or of all.
        frames: Of the clip.
        period: Frames of a cell, but for the first.
        size: Height and width in cells.
    """
    values = torch.from_numpy(np.ascontiguousarray(mask[..., 0])).float() / 255
    small = F.adaptive_avg_pool2d(values[:, None], size)[:, 0]
    if frames == 1 or len(small) == 1:
        return small[:1].expand((frames - 1) // period + 1, -1, -1).clone()
    later = small[1 : (frames - 1) // period * period + 1].unflatten(0, (-1, period)).mean(1)
    return torch.cat([small[:1], later])
