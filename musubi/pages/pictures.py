"""Pictures and clips small enough to stand inside a page, as data addresses."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import av
import numpy as np
from PIL import Image

from musubi.data.media import as_shown
from musubi.data.video_writer import Quality, encode

SIDE = 320
"""Pixels that the longer side of a small clip has at most."""
STILL = 224
"""The same for a thumbnail."""


def still(picture: np.ndarray, side: int = STILL) -> str:
    """A thumbnail as a data address: WebP.

    Args:
        picture: uint8, H W 3 or H W 4.
        side: Pixels of its longer side at most; a smaller picture is not enlarged.
    """
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=72, method=4)
    return _address("image/webp", stream.getvalue())


def clip(frames: np.ndarray, fps: float, side: int = SIDE) -> bytes:
    """A small H.264 file of a clip, as bytes.

    Args:
        frames: uint8, F H W 3.
        fps: Frames per second.
        side: Pixels of its longer side at most. A clip of fewer than a third of that is enlarged by
            whole numbers, so that its pixels stay sharp.
    """
    height, width = frames.shape[1:3]
    times = max(1, side // (3 * max(height, width)) * 2)
    scale = min(1.0, side / max(height, width))
    size = (
        (width * times, height * times)
        if times > 1
        else (_even(width * scale), _even(height * scale))
    )
    size = _even(size[0]), _even(size[1])
    method = Image.Resampling.NEAREST if times > 1 else Image.Resampling.LANCZOS
    stream = io.BytesIO()
    small = np.stack(
        [np.asarray(Image.fromarray(picture).resize(size, method)) for picture in frames]
    )
    with av.open(stream, "w", format="mp4") as container:
        encode(container, small, fps, Quality(crf=26, preset="veryfast"))
    return stream.getvalue()


def shrunk(path: Path, side: int = SIDE) -> bytes:
    """A video file as `clip` makes it.

    Raises:
        FFmpegError, ValueError: It cannot be read.
    """
    frames, fps = read(path)
    return clip(frames, fps, side)


def read(path: Path) -> tuple[np.ndarray, float]:
    """Every frame of a video, uint8 F H W 3, and its frames per second.

    Raises:
        FFmpegError, ValueError: It cannot be read, or holds no picture.
    """
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no pictures")
        track = container.streams.video[0]
        fps = float(track.average_rate or 16)
        frames = [as_shown(frame, track) for frame in container.decode(track)]
    if not frames:
        raise ValueError(f"{path} holds no pictures")
    return np.stack(frames), fps


def video_address(data: bytes) -> str:
    """The bytes of an mp4 as a data address."""
    return _address("video/mp4", data)


def _even(pixels: float) -> int:
    return max(2, round(pixels / 2) * 2)


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
