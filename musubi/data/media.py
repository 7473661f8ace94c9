"""Pictures and videos from disk as uint8 RGB arrays, or a sentence that says why not."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from PIL import Image, ImageOps

from musubi.data.frames import varies
from musubi.errors import DataError

VIDEO_EXTENSIONS = frozenset(
    (".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg")
)
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_WITH_PLUGINS = (".avif", ".jxl")

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels: cut-outs and drawings are made to be seen on a page."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

_SEEK = 24
"""Frames that are sooner decoded than sought past."""

_REORDERED = 32
"""Frames are stored out of order, by no more than this."""


@lru_cache(maxsize=1)
def image_extensions() -> frozenset[str]:
    """Endings of images that can be read here, lower case; avif and jxl where Pillow reads them."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")  # registers itself
    readable = Image.registered_extensions()
    return frozenset((*_IMAGES, *(e for e in _WITH_PLUGINS if readable.get(e) in Image.OPEN)))


# images


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as seen, from the head of the file.

    Raises:
        DataError: It is not an image.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112) in _TURNED
    return (height, width) if turned else (width, height)


def read_image(path: Path, *, alpha: bool = False) -> np.ndarray:
    """An image as it is meant to be seen: uint8, H W 3.

    EXIF orientation is applied, 16-bit greys are scaled to 8, palettes, greys and CMYK become RGB, and what
    is transparent is laid over white.

    Args:
        path: The file.
        alpha: Keep transparency: H W 4 when there is any. Control images mean something by it.

    Raises:
        DataError: It cannot be read, or only a part of it can.
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I") or upright.mode == "F":
            upright = _eight_bits(upright)
        if "A" in upright.getbands() or "a" in upright.getbands() or "transparency" in upright.info:
            upright = upright.convert("RGBA")
            if not alpha:
                page = Image.new("RGBA", upright.size, (*BACKGROUND, 255))
                upright = Image.alpha_composite(page, upright).convert("RGB")
        else:
            upright = upright.convert("RGB")
        return np.array(upright)  # a copy: what Pillow lends may not be written to


def read_mask(path: Path) -> np.ndarray:
    """An image as a mask: its brightness, uint8, H W 1.

    Raises:
        DataError: It cannot be read, or only a part of it can.
    """
    return brightness(read_image(path))


def brightness(pictures: np.ndarray) -> np.ndarray:
    """Grey levels of RGB pictures, uint8: the last axis becomes 1 (ITU-R BT.601)."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.rint(pictures[..., :3] @ weights).clip(0, 255).astype(np.uint8)[..., None]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path.name} is empty (0 bytes).", fix="Remove it, or copy it again.")
        with Image.open(path) as image:
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path.name} has more pixels than any picture needs: {str(error).split(', could')[0]}.",
            fix="Make it smaller.",
        ) from error
    except Image.UnidentifiedImageError as error:
        raise DataError(
            f"{path.name} is not an image, whatever its name says.", fix="Remove it."
        ) from error
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


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits, or of floats from 0 to 1, with 8."""
    values = np.asarray(image).astype(np.float64)
    # mode "I" is how older Pillow opens greys of 16 bits
    floats = 255.0 if values.max(initial=0) <= 1 else 1.0
    scale = floats if image.mode == "F" else 255 / 65535
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


# videos


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoInfo:
    """What is known of a video before it is decoded.

    Args:
        path: The file, or a directory of images.
        width: Of the first frame as seen, in pixels.
        height: Likewise.
        times: When each frame is shown, in seconds, ascending from 0.
        end: When the last frame ends, in seconds.
        tick: Precision of the times, in seconds.
        complete: Whether all of the file was looked at.
        stamps: The container's own time stamps, as a means to find frames again; None when it has
            none that are usable.
        keyframes: Indices of frames that decoding can begin at.
        images: The files of a directory, in order; else empty.
    """

    path: Path
    width: int
    height: int
    times: np.ndarray
    end: float
    tick: float = 0.0
    complete: bool = True
    stamps: np.ndarray | None = None
    keyframes: np.ndarray
    images: tuple[Path, ...] = ()

    @property
    def frames(self) -> int:
        """How many there are, as far as was looked."""
        return len(self.times)

    @property
    def fps(self) -> float | None:
        """Frames per second on average; None for a directory of images."""
        return None if self.images else self.frames / self.end

    @property
    def varies(self) -> bool:
        """Whether the frame rate changes within the file."""
        return not self.images and varies(self.times, self.tick)


def probe_video(
    path: Path, *, seconds: float | None = None, frames: int | None = None
) -> VideoInfo:
    """Read the time stamps of a video, and decode its first frame; a directory of images is a video.

    Args:
        path: File or directory.
        seconds: Look no further than a little behind this.
        frames: Or behind so many frames.

    Raises:
        DataError: It cannot be read, or ends before it should.
    """
    if path.is_dir():
        return _folder(path)
    with _container(path) as container:
        return _probe(path, container, seconds, frames)


def read_frames(info: VideoInfo, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode some frames, each once and in ascending order: index, and uint8 H W 3.

    Raises:
        DataError: A frame that should be there cannot be decoded.
    """
    wanted = sorted(set(indices))
    if info.images:
        for index in wanted:
            yield index, read_image(info.images[index])
        return
    found = 0
    for by_stamp in (True, False):  # some files cannot be entered at every keyframe they name
        if found < len(wanted):
            with _container(info.path) as container:
                for index, frame in _decoded(info, container, wanted[found:], by_stamp=by_stamp):
                    yield index, _upright(frame)
                    found += 1
    if found < len(wanted):
        raise DataError(
            f"{info.path.name} should have {info.frames} frames, and frame {wanted[found]} "
            "cannot be decoded.",
            fix="The file is damaged or truncated; copy it again, or convert it anew.",
        )


def _folder(path: Path) -> VideoInfo:
    known = image_extensions()
    images = tuple(sorted(p for p in path.iterdir() if p.suffix.lower() in known and p.is_file()))
    if not images:
        raise DataError(f"The folder {path.name} has no images.", fix="Put images in it.")
    width, height = image_size(images[0])
    count = len(images)
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        times=np.arange(count, dtype=np.float64),
        end=float(count),
        keyframes=np.arange(count),
        images=images,
    )


@contextlib.contextmanager
def _container(path: Path) -> Iterator[InputContainer]:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path.name} is empty (0 bytes).", fix="Remove it, or copy it again.")
        # the name is an address to FFmpeg: "file:" keeps it from seeing a protocol before a colon
        with av.open(f"file:{path}", "r", metadata_errors="ignore") as container:
            if not container.streams.video:
                raise DataError(f"{path.name} has no pictures in it.", fix="Remove it.")
            yield container
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.", fix="Check the path.") from error
    except (FFmpegError, OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"{path.name} cannot be read as a video: {reason}.",
            fix="It is damaged or truncated; copy it again, or convert it anew.",
        ) from error


def _probe(
    path: Path,
    container: InputContainer,
    seconds: float | None,
    most: int | None,
) -> VideoInfo:
    stream = container.streams.video[0]
    base = float(stream.time_base or 0)
    stamps: list[int | None] = []
    keys: list[int | None] = []
    durations: list[int] = []
    first: av.VideoFrame | None = None
    complete = True
    decoding: int | None = None
    for packet in container.demux(stream):
        if first is None:
            first = next((f for f in packet.decode() if isinstance(f, av.VideoFrame)), None)
        if packet.size == 0 or packet.is_discard:
            continue
        stamps.append(packet.pts)
        durations.append(packet.duration or 0)
        if packet.is_keyframe:
            keys.append(packet.pts)
        decoding = packet.dts
        past = 0.0 if decoding is None else (decoding - (stream.start_time or 0)) * base
        if first is not None and (
            (seconds is not None and past > seconds + 1 and len(stamps) > _REORDERED)
            or (most is not None and len(stamps) > most + _REORDERED)
        ):
            complete = False
            break
    if first is None or not stamps:
        raise DataError(
            f"{path.name} has no frame that can be decoded.",
            fix="It is damaged or truncated; copy it again, or convert it anew.",
        )
    size = _upright(first).shape
    known = [s for s in stamps if s is not None]
    usable = base > 0 and len(set(known)) == len(stamps)
    if usable:
        order = np.sort(np.asarray(known, np.int64))
        times = (order - order[0]) * base
        keyframes = np.searchsorted(order, sorted(k for k in keys if k is not None))
        last = durations[known.index(int(order[-1]))] * base
        gap = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        rate = float(stream.average_rate or 0)
        # a last frame without a duration lasts as long as the others
        end = float(times[-1]) + (gap or last or (1 / rate if rate else 1.0))
    else:
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if rate <= 0:
            raise DataError(
                f"{path.name} says neither when its frames are shown nor how many a second.",
                fix="Convert it anew, or give source_fps.",
            )
        order, keyframes = None, np.zeros(1, np.int64)
        times = np.arange(len(stamps)) / rate
        end = len(stamps) / rate
    if complete and stream.duration is not None and base > 0:
        # the last frame may be shown long; half a second and a tenth are beyond all rounding
        short = stream.duration * base - max(end, float(times[-1]) + max(durations) * base)
        if short > min(0.5, 0.1 * stream.duration * base) + 2 * end / len(times):
            raise DataError(
                f"{path.name} should last {stream.duration * base:.2f} s and ends after {end:.2f} s: "
                "it is truncated.",
                fix="Copy it again, or convert it anew.",
            )
    if not complete:  # what comes later in the file is shown after the last time of decoding
        whole = len(times) - _REORDERED
        if order is not None and decoding is not None:
            whole = max(int(np.searchsorted(order, decoding, side="right")), 1)
        times, order = times[:whole], None if order is None else order[:whole]
        keyframes = keyframes[keyframes < whole]
        end = float(times[-1]) + end / len(stamps)
    if stream.codec_context.has_b_frames and known == sorted(known):
        order = None  # AVI: times of decoding, given as times of showing; frames must be counted
    return VideoInfo(
        path=path,
        width=size[1],
        height=size[0],
        times=times,
        end=end,
        tick=base,
        complete=complete,
        stamps=order,
        keyframes=np.asarray(keyframes, np.int64),
    )


def _decoded(
    info: VideoInfo, container: InputContainer, wanted: Sequence[int], *, by_stamp: bool
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The wanted frames up to the first that is absent.

    By their stamps, with what lies between passed over; or by counting from the beginning.
    """
    stream = container.streams.video[0]
    if info.stamps is None or not by_stamp:
        left = set(wanted)
        for index, frame in enumerate(container.decode(stream)):
            if index in left:
                yield index, frame
                left.discard(index)
                if not left:
                    return
        return
    at, frames = 0, container.decode(stream)
    for index in wanted:
        key = int(np.searchsorted(info.keyframes, index, side="right")) - 1
        if key >= 0 and info.keyframes[key] > at + _SEEK:
            container.seek(int(info.stamps[info.keyframes[key]]), stream=stream)
            frames = container.decode(stream)
        stamp = int(info.stamps[index])
        for frame in frames:
            if frame.pts is not None and frame.pts >= stamp:
                if frame.pts > stamp:
                    return
                yield index, frame
                at = index + 1
                break
        else:
            return


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """RGB, turned as the file says it should be shown."""
    picture = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise, as np.rot90
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture
