"""Pictures and animations that Pillow reads, as uint8 arrays, as they are meant to be seen."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from musubi.errors import DataError

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_WITH_PLUGINS = (".avif", ".jxl")

ANIMATED = frozenset((".gif", ".webp", ".apng"))
"""Endings of files that Pillow reads and that can be videos."""

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JXL")
"""All that Pillow may take a file for: others start programs (EPS) or are no pictures at all."""

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels: cut-outs and drawings are made to be seen on a page."""

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

_SHORTEST, _UNSAID = 10, 100
"""Browsers show a frame that asks for 10 ms or less for 100 ms."""


@lru_cache(maxsize=1)
def _plugins() -> tuple[str, ...]:
    """The formats of `_FORMATS` that this Pillow reads."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")  # registers itself
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@lru_cache(maxsize=1)
def image_extensions() -> frozenset[str]:
    """Endings of images that can be read here, lower case; avif and jxl where Pillow reads them."""
    formats = _plugins()
    readable = Image.registered_extensions()
    return frozenset((*_IMAGES, *(e for e in _WITH_PLUGINS if readable.get(e) in formats)))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as seen, from the head of the file.

    Raises:
        DataError: It is not an image, or it is an animation.
    """
    with _opened(path) as image:
        _still(path, image)
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        # Pillow gives a TIFF the size that it has after turning, from the moment it is opened
        turned = turned and image.format != "TIFF"
    return (height, width) if turned else (width, height)


def read_image(path: Path, *, alpha: bool = False) -> np.ndarray:
    """An image as it is meant to be seen: uint8, H W 3.

    EXIF orientation is applied, 16-bit greys are scaled to 8, palettes, greys and CMYK become RGB, and what
    is transparent is laid over white.

    Args:
        path: The file.
        alpha: Keep transparency: H W 4 when there is any. Control images mean something by it.

    Raises:
        DataError: It cannot be read, or only a part of it can, or it is an animation.
    """
    with _opened(path) as image:
        _still(path, image)
        return _seen(ImageOps.exif_transpose(image), alpha=alpha)


def read_mask(path: Path) -> np.ndarray:
    """An image as a mask: its brightness, uint8, H W 1.

    Raises:
        DataError: It cannot be read, or only a part of it can.
    """
    return brightness(read_image(path))


def without_alpha(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as `read_image` gives them without `alpha`, and how opaque they are.

    Args:
        pictures: uint8, F H W 3 or F H W 4.

    Returns:
        F H W 3 over white, and F H W 1: 255 where nothing shines through.
    """
    if pictures.shape[-1] == 3:
        return pictures, np.full((*pictures.shape[:-1], 1), 255, np.uint8)
    over = np.stack([_over_white(Image.fromarray(picture)) for picture in pictures])
    return over, pictures[..., 3:]


def brightness(pictures: np.ndarray) -> np.ndarray:
    """Grey levels of RGB pictures, uint8: the last axis becomes 1 (ITU-R BT.601)."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.rint(pictures[..., :3] @ weights).clip(0, 255).astype(np.uint8)[..., None]


# animations


def is_animated_webp(path: Path) -> bool:
    """Whether a file is a WebP that moves, from its first bytes; False when it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(21)
    except OSError:
        return False
    return (
        head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & 2)
    )


def animation_times(
    path: Path, *, seconds: float | None = None, frames: int | None = None
) -> tuple[tuple[int, int], list[float], float, bool]:
    """Width and height, when each frame is shown, when the last one ends, and whether that is all.

    Args:
        path: A GIF, a WebP, or an animated PNG.
        seconds: Look no further than this.
        frames: Or than so many frames.

    Raises:
        DataError: It cannot be read.
    """
    with _opened(path) as image:
        times: list[float] = []
        end, complete = 0, True
        for picture in _played(image):
            if (seconds is not None and end > 1000 * (seconds + 1)) or (
                frames is not None and len(times) > frames
            ):
                complete = False
                break
            times.append(end / 1000)
            length = round(picture.info.get("duration", 0))
            end += length if length > _SHORTEST else _UNSAID
        return image.size, times, end / 1000, complete


def read_animation(path: Path, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Some frames of an animation, ascending: index, and uint8 H W 3 over white.

    Raises:
        DataError: A frame cannot be read.
    """
    left = set(wanted)
    with _opened(path) as image:
        for index, picture in enumerate(_played(image)):
            if index in left:
                yield index, _seen(picture.copy())
                left.discard(index)
            if not left:
                return


def _played(image: Image.Image) -> Iterator[Image.Image]:
    count = getattr(image, "n_frames", 1)
    # the first picture of an animated PNG may be one for readers that know no animations
    for index in range(1 if image.info.get("default_image") and count > 1 else 0, count):
        image.seek(index)
        image.load()  # a WebP knows how long a frame is shown once it is decoded
        yield image


# both


def _still(path: Path, image: Image.Image) -> None:
    """An animated PNG is an image too: it has one for those that know no animations."""
    if image.format in ("GIF", "WEBP", "AVIF") and getattr(image, "is_animated", False):
        raise DataError(
            f"{path.name} is not one picture but an animation of {getattr(image, 'n_frames', 2)} frames.",
            fix="Give it in a video dataset, or save one of its frames as a PNG."
            if image.format != "AVIF"
            else "Save one of its frames as a PNG.",
        )


def _seen(upright: Image.Image, *, alpha: bool = False) -> np.ndarray:
    if upright.mode.startswith("I") or upright.mode == "F":
        upright = _eight_bits(upright)
    if "A" in upright.getbands() or "a" in upright.getbands() or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        if not alpha:
            return _over_white(upright)
    else:
        upright = upright.convert("RGB")
    return np.array(upright)  # a copy: what Pillow lends may not be written to


def _over_white(picture: Image.Image) -> np.ndarray:
    page = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
    return np.array(Image.alpha_composite(page, picture).convert("RGB"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path.name} is empty (0 bytes).", fix="Remove it, or copy it again.")
        with Image.open(path, formats=_plugins()) as image:
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path.name} has more pixels than any picture needs: {str(error).split(', could')[0]}.",
            fix="Make it smaller.",
        ) from error
    except Image.UnidentifiedImageError as error:
        raise _unknown(path) from error
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.", fix="Check the path.") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        IndexError,
        EOFError,
    ) as error:  # Pillow raises all these
        reason = str(error).rstrip(".") or type(error).__name__
        raise DataError(
            f"{path.name} cannot be read as an image: {reason}.",
            fix="It is damaged or truncated; copy it again, or remove it.",
        ) from error


def _unknown(path: Path) -> DataError:
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] in (b"II*\0", b"MM\0*"):
        return DataError(
            f"{path.name} is a TIFF of a kind that cannot be read here, or a damaged one.",
            fix="Save it as a TIFF or PNG with 8 bits a channel.",
        )
    return DataError(f"{path.name} is not an image, whatever its name says.", fix="Remove it.")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits, or of floats from 0 to 1, with 8."""
    values = np.asarray(image).astype(np.float64)
    # mode "I" is how older Pillow opens greys of 16 bits
    floats = 255.0 if values.max(initial=0) <= 1 else 1.0
    scale = floats if image.mode == "F" else 255 / 65535
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
