"""Videos to disk: mp4 that every player shows in the colours that were meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream

from musubi.data import colours
from musubi.weights.write import atomic

CRF = 16.0
"""The default quality: no difference is seen at the size it is made for."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How a video is encoded.

    Args:
        crf: Constant rate factor of x264, 0 to 51: 6 more is about half the size.
        bit_depth: 8, or 10 for H.264 in its profile High 10.
        lossless: Keep every pixel, as H.264 in RGB; `crf` and `bit_depth` then mean nothing.
        preset: Of x264: how long it looks for a smaller file.
    """

    crf: float = CRF
    bit_depth: int = 8
    lossless: bool = False
    preset: str = "medium"

    @property
    def codec(self) -> tuple[str, str, dict[str, str]]:
        """FFmpeg's encoder, its pixel format, and its options."""
        if self.lossless:
            return "libx264rgb", "rgb24", {"qp": "0", "preset": self.preset}
        # not H.265: x265 writes beyond its memory when a picture is tiny
        layout = "yuv420p10le" if self.bit_depth == 10 else "yuv420p"
        return "libx264", layout, {"crf": f"{self.crf:g}", "preset": self.preset}


def write_video(
    pictures: Iterable[np.ndarray],
    path: Path,
    fps: float,
    *,
    quality: Quality | None = None,
    tags: Mapping[str, str] | None = None,
) -> Path:
    """Write an mp4: whole or not at all, BT.709 of limited range and tagged so, its index first.

    An odd side, which a quarter of the chroma cannot cover, gains one line that repeats its last; a
    lossless video needs none.

    Args:
        pictures: Each uint8 or uint16, H W 3; they are encoded as they come.
        path: Where to.
        fps: Frames per second.
        quality: How good; `Quality()` when not given.
        tags: Names and texts of the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic(path) as temporary,
        # the index comes first, so that a browser can play what it has not loaded yet
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        container.metadata.update(tags or {})
        encode(container, pictures, fps, quality or Quality())
    return path


def encode(
    container: OutputContainer, pictures: Iterable[np.ndarray], fps: float, quality: Quality
) -> None:
    """Add the one stream of a video to a container: pictures as those of `write_video`."""
    encoder, layout, options = quality.codec
    rate = Fraction(fps).limit_denominator(1001)
    stream = cast("VideoStream", container.add_stream(encoder, rate=rate, options=options))
    stream.pix_fmt = layout
    codec = stream.codec_context
    codec.color_primaries = codec.color_trc = colours.BT709
    codec.colorspace = colours.RGB if quality.lossless else colours.BT709
    codec.color_range = colours.FULL if quality.lossless else colours.LIMITED
    for i, picture in enumerate(pictures):
        frame = _frame(_fitting(picture, quality), quality)
        if i == 0:
            stream.height, stream.width = frame.height, frame.width
        frame.colorspace, frame.color_range = codec.colorspace, codec.color_range
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _fitting(picture: np.ndarray, quality: Quality) -> np.ndarray:
    if quality.lossless:
        return _eight_bits(picture)
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _frame(picture: np.ndarray, quality: Quality) -> av.VideoFrame:
    if quality.lossless:
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    height, width = picture.shape[:2]
    frame = av.VideoFrame(width, height, quality.codec[1])
    for plane, values in zip(
        frame.planes, colours.to_yuv420(picture, quality.bit_depth), strict=True
    ):
        lines = np.frombuffer(memoryview(plane), np.uint8)[: plane.line_size * plane.height]
        lines = lines.reshape(plane.height, plane.line_size)
        lines[:, : values.shape[1] * values.itemsize] = values.view(np.uint8)
    return frame


def _eight_bits(frames: np.ndarray) -> np.ndarray:
    if frames.dtype == np.uint8:
        return frames
    return np.rint(frames.astype(np.float32) / np.float32(257)).astype(np.uint8)
