"""The shape of a model's latents, and which videos it can make: plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Latents of one task: their size, and what follows from it.

    Args:
        channels: Channels of the latents.
        stride: Pixels per latent cell: time, height, width. The first frame has a cell of its own.
        patch: Latent cells per token: time, height, width.
        frame_rate: Frames per second that the model was trained at.
        multiple: Sides are multiples of this, in pixels; None: of a token's side.
        ratio_first: A video takes a picture's proportions by whichever rounding keeps them best and
            stays within the area; else both sides are cut alike.
    """

    channels: int
    stride: tuple[int, int, int]
    patch: tuple[int, int, int] = (1, 2, 2)
    frame_rate: float = 24.0
    multiple: int | None = None
    ratio_first: bool = False

    @property
    def side(self) -> int:
        """What the sides of a video are multiples of, in pixels.

        >>> Geometry(channels=16, stride=(4, 8, 8)).side
        16
        """
        if self.multiple is not None:
            return self.multiple
        return max(self.stride[1] * self.patch[1], self.stride[2] * self.patch[2])

    @property
    def period(self) -> int:
        """Clips have `period * k + 1` frames."""
        return self.stride[0]

    def fitting_frames(self, frames: int) -> int:
        """The largest length that is not above `frames`; 0 when there is none.

        >>> Geometry(channels=16, stride=(4, 8, 8)).fitting_frames(84)
        81
        """
        return (frames - 1) // self.period * self.period + 1 if frames > 0 else 0

    def fitting_side(self, side: float) -> int:
        """The nearest side that is possible, in pixels."""
        return max(round(side / self.side), 1) * self.side

    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
        """C, F, H, W of a clip's latents.

        >>> Geometry(channels=16, stride=(4, 8, 8)).latent_shape(832, 480, 81)
        (16, 21, 60, 104)
        """
        return (
            self.channels,
            (frames - 1) // self.stride[0] + 1,
            height // self.stride[1],
            width // self.stride[2],
        )

    def tokens(self, frames: int, height: int, width: int) -> int:
        """How many tokens latents of that size are.

        >>> Geometry(channels=16, stride=(4, 8, 8)).tokens(21, 60, 104)
        32760
        """
        along = zip((frames, height, width), self.patch, strict=True)
        count = 1
        for cells, patch in along:
            count *= max(1, -(-cells // patch))
        return count

    def same_area(self, size: tuple[int, int], of: tuple[int, int]) -> tuple[int, int]:
        """Width and height of about the area of `size`, in the proportions of a picture `of` that size.

        Each side is cut to whole latent cells and then to whole tokens, as the released code of models
        that make videos from images does; with `ratio_first` one side first, as that of others does.

        >>> Geometry(channels=16, stride=(4, 8, 8)).same_area((832, 480), of=(1000, 1000))
        (624, 624)
        """
        if self.ratio_first:
            return self._nearest_ratio(size[0] * size[1], of[0] / of[1])
        area, ratio = size[0] * size[1], of[1] / of[0]
        height = int((area * ratio) ** 0.5 // self.stride[1] // self.patch[1]) * self.patch[1]
        width = int((area / ratio) ** 0.5 // self.stride[2] // self.patch[2]) * self.patch[2]
        return (
            max(width, self.patch[2]) * self.stride[2],
            max(height, self.patch[1]) * self.stride[1],
        )

    def _nearest_ratio(self, area: int, ratio: float) -> tuple[int, int]:
        """Width and height within an area: one side is cut, and the other fills what is left of it.

        Of the two sizes that this gives, the one whose proportions are nearer; the one whose height
        was cut first where both are as near.
        """
        across = self.stride[2] * self.patch[2]
        down = self.stride[1] * self.patch[1]
        width = max(int((area * ratio) ** 0.5 // across), 1) * across
        height = max(int(area / (area * ratio) ** 0.5 // down), 1) * down
        sizes = (
            (max(int(area / height // across), 1) * across, height),
            (width, max(int(area / width // down), 1) * down),
        )

        def strayed(size: tuple[int, int]) -> float:
            found = size[0] / size[1]
            return max(ratio / found, found / ratio)

        return min(sizes, key=strayed)
