"""A decoded frame as a player shows it: with square pixels, mirrored and turned as the file says."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

_LARGEST = 16
"""A pixel that is said to be more than so many times as wide as it is high is taken for square."""


def square(picture: np.ndarray, aspect: Fraction | None) -> np.ndarray:
    """Stretch pixels that are not square, so that nothing is lost: the short side grows.

    Args:
        picture: uint8, H W 3.
        aspect: Width of a pixel over its height; None or 0 when not known.
    """
    if not aspect or not 1 / _LARGEST <= aspect <= _LARGEST:
        return picture
    height, width = picture.shape[:2]
    size = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    if size == (width, height):
        return picture
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def upright(frame: av.VideoFrame, picture: np.ndarray) -> np.ndarray:
    """Mirror and turn a frame's picture by its display matrix (ISO/IEC 14496-12, the track header)."""
    data = cast("Mapping[Any, Any]", frame.side_data).get(Type.DISPLAYMATRIX)
    if data is None or len(raw := bytes(data)) < 36:
        return picture
    # x' = a x + c y, y' = b x + d y; turns by other angles than quarters go to the nearest one
    a, b, _, c, d = struct.unpack("=5i", raw[:20])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        across, down = a, d
    else:
        picture, across, down = picture.transpose(1, 0, 2), c, b
    if across < 0:
        picture = picture[:, ::-1]
    if down < 0:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)
