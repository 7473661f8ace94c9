"""Pictures as Wan's tasks need them: resized, masked, and laid out in time. Pure functions.

Axes: C channels, F frames, H, W; pixels are in [-1, 1], latents normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from musubi.errors import ConfigError

GREY = 0.0
"""What stands where no frame is given: the middle of the range of pixels."""


def pixels(frames: torch.Tensor) -> torch.Tensor:
    """Bytes F H W C, of which the first three channels count, to pixels 3 F H W."""
    return frames[..., :3].permute(3, 0, 1, 2).float() / 127.5 - 1


def resized(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A picture 3 H W at another size, by bicubic interpolation without antialiasing.

    As the official code does it: on floats, not clamped, and with nothing cropped.
    """
    if tuple(picture.shape[-2:]) == (height, width):
        return picture
    return F.interpolate(picture[None], size=(height, width), mode="bicubic", align_corners=False)[
        0
    ]


def covering(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A picture 3 H W made so large that it covers the size, and cropped to its middle."""
    tall, wide = picture.shape[-2:]
    scale = max(height / tall, width / wide)
    rows, columns = max(round(tall * scale), height), max(round(wide * scale), width)
    top, left = (rows - height) // 2, (columns - width) // 2
    return resized(picture, rows, columns)[:, top : top + height, left : left + width]


def covering_smoothly(picture: np.ndarray, height: int, width: int) -> torch.Tensor:
    """A picture H W 3 of bytes, by Pillow's Lanczos filter, as pixels 3 H W that cover the size.

    As the official code prepares the image for the 5B model.
    """
    tall, wide = picture.shape[:2]
    scale = max(height / tall, width / wide)
    rows, columns = max(round(tall * scale), height), max(round(wide * scale), width)
    large = Image.fromarray(picture[..., :3]).resize((columns, rows), Image.Resampling.LANCZOS)
    left, top = (columns - width) // 2, (rows - height) // 2
    cropped = np.array(large.crop((left, top, left + width, top + height)))
    return pixels(torch.from_numpy(cropped)[None])[:, 0]


def within(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A picture 3 H W on a white canvas of the size, as large as fits: VACE's references."""
    tall, wide = picture.shape[-2:]
    if (tall, wide) == (height, width):
        return picture
    scale = min(height / tall, width / wide)
    rows, columns = int(tall * scale), int(wide * scale)
    inner = F.interpolate(
        picture[None], size=(rows, columns), mode="bilinear", align_corners=False
    )[0]
    canvas = picture.new_ones(3, height, width)
    top, left = (height - rows) // 2, (width - columns) // 2
    canvas[:, top : top + rows, left : left + columns] = inner
    return canvas


def filled(start: torch.Tensor, frames: int, end: torch.Tensor | None = None) -> torch.Tensor:
    """A video 3 F H W that begins with one picture, may end with another, and is grey between."""
    video = start.new_full((3, frames, *start.shape[-2:]), GREY)
    video[:, 0] = start
    if end is not None:
        video[:, -1] = end
    return video


def frame_mask(
    latents: torch.Tensor, *, last: bool = False, whole_last: bool = False
) -> torch.Tensor:
    """Which frames are given: four channels a latent frame, 4 F H W, shaped after `latents`.

    The first latent frame stands for one frame, repeated four times: (1, 1, 1, 1). A later one
    stands for four, of which a given last frame is the fourth: (0, 0, 0, 1).

    Args:
        latents: C F H W.
        last: The last frame is given too.
        whole_last: The last latent frame was encoded by itself, and is given whole.
    """
    mask = latents.new_zeros(4, *latents.shape[1:])
    mask[:, 0] = 1
    if last and latents.shape[1] > 1:
        mask[3, -1] = 1
    if whole_last:
        mask[:, -1] = 1
    return mask


@dataclass(frozen=True)
class Layout:
    """Which moments the latent frames of a one-frame task stand for.

    Args:
        positions: In time, ascending, one for each latent frame.
        target: Which of the frames is made; the others are given, in the order they were named.
    """

    positions: tuple[int, ...]
    target: int

    @property
    def given(self) -> tuple[int, ...]:
        """The frames that are given."""
        return tuple(i for i in range(len(self.positions)) if i != self.target)


def layout(controls: Sequence[int], target: int) -> Layout:
    """The latent frames of a one-frame task, sorted in time.

    >>> layout([0, 10], 1)
    Layout(positions=(0, 1, 10), target=1)

    Raises:
        ConfigError: A position is negative, or named twice.
    """
    positions = sorted([*controls, target])
    if positions[0] < 0 or len(set(positions)) < len(positions):
        raise ConfigError(
            f"target_index={target} and control_index={';'.join(map(str, controls))} are no places "
            "in time: each is 0 or more, and no two are alike.",
            fix="Write target_index=1,control_index=0, say.",
        )
    return Layout(tuple(positions), positions.index(target))


def interleaved(given: Sequence[torch.Tensor], target: torch.Tensor, where: Layout) -> torch.Tensor:
    """Latents C 1 H W of the given pictures and of the target, in the order of time: C F H W.

    The given pictures fill the places beside the target in the order they were given.
    """
    frames = dict(zip(where.given, given, strict=True)) | {where.target: target}
    return torch.cat([frames[i] for i in range(len(where.positions))], dim=1)


def slot_mask(latents: torch.Tensor, where: Layout) -> torch.Tensor:
    """Ones where a picture is given, zeros at the target's place: 4 F H W."""
    mask = latents.new_ones(4, *latents.shape[1:])
    mask[:, where.target] = 0
    return mask


def control_only(control: torch.Tensor, first: torch.Tensor | None) -> torch.Tensor:
    """What Fun-Control joins to the noise: the control, then the start image; B 32 F H W.

    The image's part is the latent frame of the start image alone, and zeros behind it; there is no
    mask.

    Args:
        control: Latents of the control video, B 16 F H W.
        first: Latents that begin with the start image's, B 16 F' H W; None: there is none.
    """
    image = torch.zeros_like(control)
    if first is not None:
        image[:, :, 0] = first[:, :, 0].to(control)
    return torch.cat([control, image], dim=1)


def change_mask(mask: torch.Tensor, stride: tuple[int, int, int]) -> torch.Tensor:
    """A mask of pixels, F H W, as channels of latent cells: (8·8) F' H/8 W/8, for VACE.

    Each pixel of a cell is a channel; of the frames, the nearest ones are taken.
    """
    frames, height, width = mask.shape
    _, down, across = stride
    cells = mask.view(frames, height // down, down, width // across, across)
    channels = cells.permute(2, 4, 0, 1, 3).flatten(0, 1)
    size = ((frames + 3) // stride[0], height // down, width // across)
    return F.interpolate(channels[None].float(), size=size, mode="nearest-exact")[0]
