"""Which size a picture is trained at, and making it that size: one rule for caching and training."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image

Size = tuple[int, int]
"""Width and height in pixels."""


@lru_cache(maxsize=64)
def bucket_list(resolution: Size, step: int) -> tuple[Size, ...]:
    """Sizes of at most the area of `resolution`, with sides that are multiples of `step`, ascending.

    >>> bucket_list((64, 64), 16)
    ((32, 128), (48, 80), (64, 64), (80, 48), (128, 32))
    """
    area = resolution[0] * resolution[1]
    middle = math.isqrt(area)
    found: set[Size] = set()
    for short in range(max(middle // 2 // step, 1) * step, middle + step, step):
        long = area // short // step * step
        if long:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found))


def choose(size: Size, resolution: Size, step: int, *, enable: bool, no_upscale: bool) -> Size:
    """The bucket of a picture.

    Args:
        size: Of the picture.
        resolution: Of the dataset.
        step: What sides are multiples of, in pixels.
        enable: Without buckets everything is made exactly `resolution`.
        no_upscale: A picture of no more than the area keeps its own size, sides rounded down.
    """
    if not enable:
        return resolution
    width, height = size
    if no_upscale and width * height <= resolution[0] * resolution[1]:
        own = width // step * step, height // step * step
        if min(own) > 0:  # narrower than one step cannot be kept
            return own
    buckets = bucket_list(resolution, step) or (resolution,)
    return min(buckets, key=lambda b: abs(b[0] / b[1] - width / height))


def resize_and_crop(frames: np.ndarray, bucket: Size) -> np.ndarray:
    """Fill the bucket and cut off evenly what is too much.

    Enlarged with Lanczos, shrunk by averaging areas; what fits exactly is returned as it is.

    Args:
        frames: uint8, F H W C, C 1, 3 or 4.
        bucket: Width and height.
    """
    height, width = frames.shape[1:3]
    if (width, height) == bucket:
        return frames
    scale = max(bucket[0] / width, bucket[1] / height)
    new = (
        max(int(width * scale + 0.5), bucket[0]),
        max(int(height * scale + 0.5), bucket[1]),
    )
    left, top = (new[0] - bucket[0]) // 2, (new[1] - bucket[1]) // 2
    out = np.empty((len(frames), bucket[1], bucket[0], frames.shape[3]), np.uint8)
    for i, frame in enumerate(frames):
        if new == (width, height):
            whole = frame
        elif scale > 1:
            grey = frame.shape[2] == 1
            picture = Image.fromarray(np.ascontiguousarray(frame[..., 0] if grey else frame))
            whole = np.asarray(picture.resize(new, Image.Resampling.LANCZOS))
            whole = whole[..., None] if grey else whole
        else:
            whole = shrink(frame, new)
        out[i] = whole[top : top + bucket[1], left : left + bucket[0]]
    return out


def shrink(picture: np.ndarray, size: Size) -> np.ndarray:
    """Average over areas, as OpenCV's INTER_AREA does.

    Args:
        picture: uint8, H W C.
        size: New width and height, neither larger than the old.
    """
    height, width = picture.shape[:2]
    if (width, height) == (2 * size[0], 2 * size[1]):  # OpenCV rounds halves up in this case alone
        total = picture.reshape(size[1], 2, size[0], 2, -1).sum(axis=(1, 3), dtype=np.uint16)
        return ((total + 2) >> 2).astype(np.uint8)
    averaged = _average(np.asarray(picture, np.float32), size[0], axis=1)
    averaged = _average(averaged, size[1], axis=0)
    return np.clip(np.rint(averaged), 0, 255).astype(np.uint8)


def _average(picture: np.ndarray, length: int, *, axis: int) -> np.ndarray:
    if picture.shape[axis] == length:
        return picture
    places, weights = _areas(picture.shape[axis], length)
    shape = [1, 1, 1]
    shape[axis] = length
    out = np.take(picture, places[0], axis=axis) * weights[0].reshape(shape)
    for place, weight in zip(places[1:], weights[1:], strict=True):
        out += np.take(picture, place, axis=axis) * weight.reshape(shape)
    return out


@lru_cache(maxsize=64)
def _areas(source: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """For each new cell the old cells under it and their shares: two arrays, taps × `length`."""
    scale = source / length
    begin = np.arange(length) * scale
    end = np.minimum(begin + scale, source)
    whole = np.minimum(scale, source - begin)
    # a share below a thousandth of a cell is left out, as OpenCV does
    first_whole = np.ceil(begin - 1e-3).astype(int)
    last_whole = np.minimum(np.floor(end + 1e-3).astype(int), source)
    first = np.floor(np.where(begin - (first_whole - 1) < 1 - 1e-9, begin, first_whole)).astype(int)
    taps = int((np.ceil(end - 1e-3).astype(int) - first).max())
    places = first[None, :] + np.arange(taps)[:, None]
    share = np.minimum(places + 1, end) - np.maximum(places, begin)
    inside = (places >= first_whole) & (places < last_whole)
    share = np.where(inside, 1.0, np.where(share > 1e-3, share, 0.0))
    weights = (share / whole).astype(np.float32)
    return np.minimum(places, source - 1), weights
