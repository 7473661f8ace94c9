"""Videos from disk as uint8 RGB arrays, or a sentence that says why not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from musubi.data import colours, shown
from musubi.data.frames import varies
from musubi.data.images import (
    ANIMATED,
    animation_times,
    image_extensions,
    image_size,
    read_animation,
    read_image,
)
from musubi.errors import DataError

VIDEO_EXTENSIONS = frozenset(
    (
        *(".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg"),
        *(".ts", ".mts", ".m2ts", ".gif", ".webp", ".apng"),
    )
)

_SEEK = 24
"""Frames that are sooner decoded than sought past."""

_REORDERED = 32
"""Frames are stored out of order, by no more than this."""


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
        remarks: What is odd about its pictures, a phrase each, for the user to know.
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
    remarks: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        """How many there are, as far as was looked."""
        return len(self.times)

    @property
    def fps(self) -> float | None:
        """Frames per second on average; None for a directory of images, and for one frame alone."""
        return None if self.images or self.frames < 2 else self.frames / self.end

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
    if path.suffix.lower() in ANIMATED:
        return _animation(path, seconds, frames)
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
    if info.path.suffix.lower() in ANIMATED:
        for index, picture in read_animation(info.path, wanted):
            yield index, picture
            found += 1
    for by_stamp in (True, False):  # some files cannot be entered at every keyframe they name
        if found < len(wanted):
            with _container(info.path) as container:
                stream = _stream(container)
                assert stream is not None
                for index, frame in _decoded(info, container, wanted[found:], by_stamp=by_stamp):
                    yield index, as_shown(frame, stream)
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


def _animation(path: Path, seconds: float | None, frames: int | None) -> VideoInfo:
    size, times, end, complete = animation_times(path, seconds=seconds, frames=frames)
    return VideoInfo(
        path=path,
        width=size[0],
        height=size[1],
        times=np.asarray(times, np.float64),
        end=end,
        tick=0.001,
        complete=complete,
        keyframes=np.zeros(1, np.int64),
    )


@contextlib.contextmanager
def _container(path: Path) -> Iterator[InputContainer]:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path.name} is empty (0 bytes).", fix="Remove it, or copy it again.")
        with _open(path) as container:
            if _stream(container) is None:
                kinds = {
                    "sound": container.streams.audio,
                    "a cover picture": container.streams.video,
                }
                held = " and ".join(kind for kind, streams in kinds.items() if streams)
                raise DataError(
                    f"{path.name} has no video in it{held and f', only {held}'}.", fix="Remove it."
                )
            yield container
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.", fix="Check the path.") from error
    except (FFmpegError, OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"{path.name} cannot be read as a video: {reason}.",
            fix="It is damaged or truncated; copy it again, or convert it anew.",
        ) from error


def _open(path: Path) -> InputContainer:
    # the name is an address to FFmpeg: "file:" keeps it from seeing a protocol before a colon
    address = f"file:{path}"
    try:
        return av.open(address, "r", metadata_errors="ignore")
    except TypeError:  # from PyAV 19 on: words in another encoding are never an error
        return av.open(address, "r")


def _stream(container: InputContainer) -> VideoStream | None:
    """The first stream of moving pictures: a cover is one of a single picture."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def _probe(
    path: Path,
    container: InputContainer,
    seconds: float | None,
    most: int | None,
) -> VideoInfo:
    stream = _stream(container)
    assert stream is not None
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
    size = as_shown(first, stream).shape
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
        end = float(times[-1]) + (gap or max(last, 1 / rate if rate else 0.0) or 1.0)
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
        remarks=_remarks(first, stream),
    )


def _remarks(frame: av.VideoFrame, stream: VideoStream) -> tuple[str, ...]:
    out: list[str] = []
    if (curve := _transfer(frame, stream)) in colours.HDR:
        out.append(f"HDR ({colours.HDR[curve]}), tone-mapped to BT.709")
    if frame.interlaced_frame:
        out.append("interlaced, so what moves has combed edges: deinterlace it first")
    return tuple(out)


def _decoded(
    info: VideoInfo, container: InputContainer, wanted: Sequence[int], *, by_stamp: bool
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The wanted frames up to the first that is absent.

    By their stamps, with what lies between passed over; or by counting from the beginning.
    """
    stream = _stream(container)
    assert stream is not None
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


def as_shown(frame: av.VideoFrame, stream: VideoStream) -> np.ndarray:
    """A frame as a player shows it: uint8 RGB, H W 3, with square pixels, mirrored and turned as the file says."""
    codec = stream.codec_context
    picture = colours.to_rgb(
        frame,
        matrix=int(codec.colorspace),
        full=int(codec.color_range) == colours.FULL,
        transfer=_transfer(frame, stream),
        centred=codec.name in ("mjpeg", "mpeg1video"),
    )
    aspect = stream.sample_aspect_ratio or codec.sample_aspect_ratio
    return shown.upright(frame, shown.square(picture, Fraction(aspect) if aspect else None))


def _transfer(frame: av.VideoFrame, stream: VideoStream) -> int:
    """The transfer curve; PyAV before 17 knows that of a stream only."""
    said = int(getattr(frame, "color_trc", 2))
    return said if said != 2 else int(stream.codec_context.color_trc)
