"""The shape of a model's latents, and the video sizes that follow from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The size of one task's latents, and the video sizes and lengths that follow from it.

    Args:
        channels: Channels of the latents.
        stride: Pixels per latent cell: time, height, width. The first frame has its own cell in
            time.
        patch: Latent cells per token: time, height, width.
        frame_rate: Frames per second that the model was trained at.
        multiple: Width and height must be multiples of this, in pixels; None: of the side of a
            token.
        ratio_first: How a video takes the proportions of a picture. True: round the sides so that
            the proportions are kept best within the area. False: round both sides down in the same
            way.
    """

    channels: int
    stride: tuple[int, int, int]
    patch: tuple[int, int, int] = (1, 2, 2)
    frame_rate: float = 24.0
    multiple: int | None = None
    ratio_first: bool = False

    @property
    def side(self) -> int:
        """The number of pixels that width and height must be multiples of.

        >>> Geometry(channels=16, stride=(4, 8, 8)).side
        16
        """
        if self.multiple is not None:
            return self.multiple
        return max(self.stride[1] * self.patch[1], self.stride[2] * self.patch[2])

    @property
    def period(self) -> int:
        """The stride in time: clips have `period * k + 1` frames."""
        return self.stride[0]

    def fitting_frames(self, frames: int) -> int:
        """The largest length that is not above `frames`; 0 when there is none.

        >>> Geometry(channels=16, stride=(4, 8, 8)).fitting_frames(84)
        81
        """
        return (frames - 1) // self.period * self.period + 1 if frames > 0 else 0

    def fitting_side(self, side: float) -> int:
        """The nearest allowed width or height, in pixels."""
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
        """How many tokens latents of this size give.

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

        Each side is rounded down to whole latent cells and then to whole tokens, as the released
        code of image-to-video models does. With `ratio_first` one side is rounded first, and the
        other follows from it, as the released code of other models does.

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
        """Width and height within an area, in about the given proportions.

        One side is rounded down, and the other takes as much of the area as is left. This gives two
        sizes; the result is the one whose proportions are nearer to `ratio`. If both are equally
        near, it is the one whose height was rounded first.
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
