"""Between a video's colours and RGB, by the matrices of the standards: BT.601, 709, 2020 and their kin.

FFmpeg's converter, swscale, took every video for BT.601 in some versions, and rounds otherwise in each.
So the numbers are worked out here, and are the same whatever PyAV is installed.
Codes of matrices, ranges and transfer curves are those of ITU-T H.273.
"""

from __future__ import annotations

import re
from functools import lru_cache

import av
import numpy as np

from musubi.errors import DataError

RGB, BT709, BT601, BT2020 = 0, 1, 6, 9
LIMITED, FULL = 1, 2
PQ, HLG = 16, 18

HDR = {PQ: "PQ", HLG: "HLG"}
"""Transfer curves of high dynamic range."""

# The shares of red and blue in luma. 2 is unspecified; 3 is reserved, and read as that.
_SHARES = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    BT601: (0.299, 0.114),
    7: (0.212, 0.087),
    BT2020: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
_YCGCO = 8
_REFUSED = {
    11: "YDzDx",
    12: "chromaticity-derived",
    13: "chromaticity-derived",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}

_PLANAR = re.compile(r"yuvj?(?P<alpha>a?)4(?P<shape>\d\d)p(?P<bits>9|1[0246])?(le)?")
_GREY = re.compile(r"gray(?P<bits>9|1[0246])?(le)?")
_SHRUNK = {"20": (2, 2), "22": (2, 1), "44": (1, 1), "40": (1, 2), "11": (4, 1), "10": (4, 4)}
"""Luma samples for one of chroma, across and down."""

_BAND = 64
"""Rows that are worked on at a time, so that they stay in the processor's cache."""

_REFERENCE_WHITE = 203.0  # cd/m², ITU-R BT.2408
_PEAK = 1000.0  # cd/m²: what HLG is defined at, and what most PQ is mastered for
_TABLE = 4096


def matrix_of(frame: av.VideoFrame, tagged: int = 2) -> int:
    """The matrix that a frame was made with: as it says, else as its stream says, else by its size.

    A file that does not say is taken as players take it: BT.709 from 1280 pixels of width or more
    than 576 of height, BT.601 below.
    """
    for code in (int(frame.colorspace), int(tagged)):
        if code in _SHARES or code == _YCGCO or code in _REFUSED:
            return code
    return BT709 if frame.width >= 1280 or frame.height > 576 else BT601


def to_rgb(
    frame: av.VideoFrame,
    *,
    matrix: int = 2,
    full: bool = False,
    transfer: int = 2,
    centred: bool = False,
) -> np.ndarray:
    """A decoded frame as RGB: uint8, H W 3.

    Args:
        frame: In any format that FFmpeg gives. What is transparent is laid over white.
        matrix: What the stream says, for a frame that says nothing.
        full: Likewise: whether the range is full.
        transfer: Likewise: the transfer curve. PQ and HLG are tone-mapped to BT.709.
        centred: Whether chroma lies between its luma samples, as in JPEG and MPEG-1, and not beside
            the left one.

    Raises:
        DataError: The colours are of a kind that is not read.
    """
    name = frame.format.name
    if frame.format.is_rgb or frame.format.has_palette or name.startswith("mono"):
        return _from_rgb(frame, transfer)
    layout = _PLANAR.fullmatch(name)
    if layout is None and _GREY.fullmatch(name) is None:
        frame = _planar(frame)
        layout = _PLANAR.fullmatch(frame.format.name)
    code = matrix_of(frame, matrix)
    if code in _REFUSED:
        raise DataError(
            f"The colours of this video are stored as {_REFUSED[code]}, which is not read here.",
            fix="Convert it to BT.709 with another program.",
        )
    limits = int(frame.color_range)
    full = limits == FULL or (full and limits != LIMITED) or name.startswith("yuvj")
    return _from_planes(frame, code, full, transfer, layout, centred)


def _planar(frame: av.VideoFrame) -> av.VideoFrame:
    """The same numbers in planes: a packed or half-planar format taken apart, no colour converted."""
    name = frame.format.name
    deep = max(part.bits for part in frame.format.components) > 8
    if name.startswith(("gray", "ya")):
        target = "gray16le" if deep else "gray"
    else:
        target = "yuv444p16le" if deep else "yuv444p"
    colours, limits = int(frame.colorspace), int(frame.color_range)
    same = 2 if limits == FULL else 1
    out = frame.reformat(format=target, src_color_range=same, dst_color_range=same)
    out.colorspace, out.color_range = colours, limits
    return out


def _from_rgb(frame: av.VideoFrame, transfer: int) -> np.ndarray:
    alpha = any(part.is_alpha for part in frame.format.components) or frame.format.has_palette
    if transfer in HDR:
        picture = frame.reformat(format="rgb48le").to_ndarray()
        return _bytes(tone_mapped(picture.astype(np.float32) / 65535, transfer))
    picture = frame.reformat(format="rgba" if alpha else "rgb24").to_ndarray()
    return _over_white(picture[..., :3], picture[..., 3:] / np.float32(255)) if alpha else picture


def _from_planes(
    frame: av.VideoFrame,
    code: int,
    full: bool,
    transfer: int,
    layout: re.Match[str] | None,
    centred: bool,
) -> np.ndarray:
    found = layout or _GREY.fullmatch(frame.format.name)
    assert found is not None
    bits = int(found["bits"] or 8)
    planes = [_plane(frame, i, bits) for i in range(len(frame.planes))]
    height, width = planes[0].shape
    black, unit, colour = _levels(bits, full)
    most = np.float32(1 if transfer in HDR else 255)
    chroma: list[np.ndarray] = []
    if layout is not None:
        across, down = _SHRUNK[layout["shape"]]
        middle = np.float32(1 << (bits - 1))
        for plane in planes[1:3]:
            values = (plane.astype(np.float32) - middle) * (most / colour)
            values = _spread(values, down, height, 0, centred=True)
            chroma.append(_spread(values, across, width, 1, centred=centred))
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _BAND):
        rows = slice(top, top + _BAND)
        luma = (planes[0][rows].astype(np.float32) - black) * (most / unit)
        parts = _mixed(luma, *(c[rows] for c in chroma), code=code) if chroma else (luma,) * 3
        if transfer in HDR:
            out[rows] = _bytes(tone_mapped(np.stack(parts, axis=-1), transfer))
            continue
        for channel, part in enumerate(parts):
            out[rows, :, channel] = np.clip(np.rint(part), 0, most)
    if layout is not None and layout["alpha"]:
        share = planes[3].astype(np.float32) / np.float32((1 << bits) - 1)
        out = _over_white(out, share[..., None])
    return out


def _mixed(
    y: np.ndarray, u: np.ndarray, v: np.ndarray, *, code: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R', G' and B' of 0 to 1, from luma of 0 to 1 and chroma of -0.5 to 0.5; or all of 255 times that."""
    if code == _YCGCO:  # u is green, v is orange
        rest = y - u
        return rest + v, y + u, rest - v
    red, blue = _SHARES[code]
    green = 1 - red - blue
    of_red, of_blue = 2 * (1 - red), 2 * (1 - blue)
    less = u * np.float32(of_blue * blue / green) + v * np.float32(of_red * red / green)
    return y + v * np.float32(of_red), y - less, y + u * np.float32(of_blue)


def _levels(bits: int, full: bool) -> tuple[np.float32, np.float32, np.float32]:
    """Black, the span of luma, and the span of chroma, in steps of the stored numbers."""
    if full:
        most = np.float32((1 << bits) - 1)
        return np.float32(0), most, most
    step = 1 << (bits - 8)
    return np.float32(16 * step), np.float32(219 * step), np.float32(224 * step)


def _plane(frame: av.VideoFrame, index: int, bits: int) -> np.ndarray:
    """One plane without the padding of its lines: uint8 or uint16, H W."""
    plane = frame.planes[index]
    kind = np.dtype(np.uint8 if bits == 8 else "<u2")
    lines = np.frombuffer(memoryview(plane), np.uint8)[: plane.line_size * plane.height]
    lines = lines.reshape(plane.height, plane.line_size)
    return np.ascontiguousarray(lines[:, : plane.width * kind.itemsize]).view(kind)


def _spread(plane: np.ndarray, factor: int, length: int, axis: int, *, centred: bool) -> np.ndarray:
    """`factor` samples for each one, on straight lines between them, cut to `length`."""
    if factor == 1:
        return plane
    flat = np.moveaxis(plane, axis, 0)
    before = np.concatenate([flat[:1], flat[:-1]])
    behind = np.concatenate([flat[1:], flat[-1:]])
    out = np.empty((len(flat) * factor, *flat.shape[1:]), np.float32)
    for k in range(factor):
        at = (k + 0.5) / factor - 0.5 if centred else k / factor
        other, share = (before, np.float32(-at)) if at < 0 else (behind, np.float32(at))
        out[k::factor] = flat * (1 - share) + other * share if share else flat
    return np.moveaxis(out[:length], 0, axis)


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(picture, 0, 1) * np.float32(255)).astype(np.uint8)


def _over_white(picture: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.rint(picture * share + np.float32(255) * (1 - share)).astype(np.uint8)


# high dynamic range


def tone_mapped(picture: np.ndarray, transfer: int) -> np.ndarray:
    """R'G'B' of BT.2020 with PQ or HLG as R'G'B' of BT.709: float32 from 0 to 1, H W 3.

    Light up to about 90 cd/m² is kept in its proportion to the reference white of 203; above it is
    compressed as ITU-R BT.2390 describes, by the strongest of the three colours so that hues stay.
    """
    light = _light(np.clip(picture, 0, 1), transfer)
    strongest = light.max(axis=-1, keepdims=True)
    light = light * (_compressed(strongest) / np.maximum(strongest, np.float32(1e-4)))
    rgb = (light / np.float32(_REFERENCE_WHITE)) @ _TO_BT709.T
    return np.clip(rgb, 0, 1) ** np.float32(1 / 2.4)  # the inverse of a display's, BT.1886


_TO_BT709 = np.asarray(  # ITU-R BT.2087
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def _light(picture: np.ndarray, transfer: int) -> np.ndarray:
    """What a display of 1000 cd/m² shows, in cd/m²."""
    codes = np.linspace(0, 1, _TABLE)
    if transfer == PQ:
        return _looked_up(picture, _pq_table())
    # ITU-R BT.2100: the scene's light, then the system gamma of 1.2
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - c) / a) + b) / 12)
    rgb = _looked_up(picture, scene.astype(np.float32))
    luma = rgb @ np.asarray([0.2627, 0.6780, 0.0593], np.float32)
    return rgb * (np.float32(_PEAK) * np.maximum(luma, 0) ** np.float32(0.2))[..., None]


def _looked_up(picture: np.ndarray, table: np.ndarray) -> np.ndarray:
    place = picture * np.float32(_TABLE - 1)
    low = np.minimum(place.astype(np.int32), _TABLE - 2)
    part = place - low
    return table[low] * (1 - part) + table[low + 1] * part


@lru_cache(maxsize=1)
def _pq_table() -> np.ndarray:
    return _pq_light(np.linspace(0, 1, _TABLE)).astype(np.float32)


def _pq_light(code: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 78.84375, 0.8359375, 18.8515625, 18.6875
    root = code ** (1 / m2)
    return 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def _pq_code(light: np.ndarray) -> np.ndarray:
    m1, m2, c1, c2, c3 = 2610 / 16384, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = (np.maximum(light, 0) / 10000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def _compressed(light: np.ndarray) -> np.ndarray:
    """The curve of BT.2390 from a peak of 1000 cd/m² to the reference white."""
    whole = float(_pq_code(np.asarray(_PEAK)))
    code = np.minimum(_pq_code(light.astype(np.float64)) / whole, 1)
    most = float(_pq_code(np.asarray(_REFERENCE_WHITE))) / whole
    knee = 1.5 * most - 0.5
    t = np.clip((code - knee) / (1 - knee), 0, 1)
    bent = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * most
    )
    return _pq_light(np.where(code < knee, code, bent) * whole).astype(np.float32)


# writing


def to_yuv420(picture: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RGB as BT.709 of limited range, one chroma sample for four of luma.

    Args:
        picture: uint8 or uint16, H W 3, both sides even.
        bits: Of the result: 8 gives uint8, 10 gives uint16.

    Returns:
        Y of H W, U and V of H/2 W/2.
    """
    rgb = picture.astype(np.float32) / np.float32(np.iinfo(picture.dtype).max)
    red, blue = _SHARES[BT709]
    y = rgb @ np.asarray([red, 1 - red - blue, blue], np.float32)
    black, unit, colour = _levels(bits, full=False)
    middle = np.float32(1 << (bits - 1))
    kind = np.uint8 if bits == 8 else np.uint16
    planes = [np.rint(y * unit + black).astype(kind)]
    for channel, share in ((2, blue), (0, red)):
        chroma = (rgb[..., channel] - y) / np.float32(2 * (1 - share))
        rows = (chroma[::2] + chroma[1::2]) / 2
        # beside the left one of two luma samples: a quarter, a half and a quarter around it
        left = np.concatenate([rows[:, :1], rows[:, 1:-1:2]], axis=1)
        small = left / 4 + rows[:, ::2] / 2 + rows[:, 1::2] / 4
        planes.append(np.rint(small * colour + middle).astype(kind))
    return planes[0], planes[1], planes[2]
