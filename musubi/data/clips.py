"""From a source to its clips: planned without decoding, then decoded in one pass, each frame
resized at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from musubi.config.dataset import DatasetEntry
from musubi.data import buckets, frames, images, media
from musubi.data.buckets import Size
from musubi.data.media import VideoInfo
from musubi.data.read_ahead import read_ahead
from musubi.data.sources import Source
from musubi.errors import DataError, counted
from musubi.plugin.architecture import Architecture, Task
from musubi.plugin.inputs import LOSS_MASK, Input
from musubi.plugin.runtime import Clip

_KEPT = 0.75
"""If less than this share of a frame is left after cropping, the user is told."""
_NAMED = 3
"""Files of one kind that a sentence names."""

_PROPORTIONS = 0.02
"""A mask that was made smaller has rounded sides."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """One file of an input.

    Args:
        input: What it is.
        path: The file.
        video: What is known of it, when it is a video.
        frames: For each frame that is used, its number in the video.
    """

    input: Input
    path: Path
    video: VideoInfo | None = None
    frames: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipPlan:
    """One clip that a source gives.

    Args:
        source: Where it comes from.
        bucket: Width and height it is trained at.
        size: Width and height of the source as seen.
        start: First frame, counted at the model's rate; 0 for an image.
        length: Frames of the crop; 1 for an image.
        total: Frames that the whole source has at the model's rate, as far as was looked.
        frames: For each frame that is used, its number in the source: as many as the task uses of
            `length`.
        inputs: For each input the files given for it.
        video: The source, when it is a video.
        options: The architecture's own keys of the dataset.
        alpha_mask: The loss counts where the image is not transparent.
    """

    source: Source
    bucket: Size
    size: Size
    start: int = 0
    length: int = 1
    total: int = 1
    frames: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    inputs: Mapping[str, tuple[Given, ...]] = field(default_factory=dict)
    video: VideoInfo | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    alpha_mask: bool = False

    @property
    def cache_stem(self) -> str:
        """The part of record names that tells the source's clips apart."""
        if self.video is None:
            return self.source.stem
        return f"{self.source.stem}_{self.start:05d}-{self.length:03d}"

    @property
    def name(self) -> str:
        """For messages: the file and where in it."""
        if self.video is None:
            return self.source.path.name
        return f"{self.source.path.name}, frames {self.start} to {self.start + self.length - 1}"


def plan(
    source: Source,
    entry: DatasetEntry,
    architecture: Architecture,
    task: Task,
    options: Mapping[str, Any] | None = None,
) -> list[ClipPlan]:
    """Which clips a source gives, ascending by start. Opens the file; decodes at most one frame.

    Args:
        source: A file of the dataset.
        entry: The dataset.
        architecture: For messages.
        task: Gives the frame rate, what sides are multiples of, and how many of a clip's frames it uses.
        options: The architecture's own options, laid over those of the dataset.

    Raises:
        DataError: The file cannot be read, or is too short for any clip.
    """
    if source.kind == "image":
        size = media.image_size(source.path)
        _check_masks(source, size, {})
        return [
            ClipPlan(
                source=source,
                size=size,
                bucket=_bucket(size, entry, task),
                inputs=_given(source, entry, task, {}, np.zeros(1, np.int64)),
                options=entry.options,
                alpha_mask=entry.alpha_mask,
            )
        ]
    rate = task.shape.frame_rate
    video, shown = _timeline(source.path, entry, rate)
    beside = {
        path: _timeline(path, entry, rate)
        for one in entry.inputs
        for path in source.inputs.get(one.name, ())
        if moves(one, path)
    }
    size = video.width, video.height
    _check_masks(source, size, beside)
    plans: list[ClipPlan] = []
    spans = frames.windows(len(shown), entry)
    for start, length in spans:
        used = _usable(length, task, {**entry.options, **(options or {})})
        if used == 0:
            continue
        wanted = np.arange(start, start + used)
        plans.append(
            ClipPlan(
                source=source,
                size=size,
                bucket=_bucket(size, entry, task),
                start=start,
                length=length,
                total=len(shown),
                frames=shown[wanted],
                inputs=_given(source, entry, task, beside, wanted),
                video=video,
                options=entry.options,
            )
        )
    if not plans:
        raise _too_short(source, len(shown), entry, task, bool(spans))
    return plans


def decode(source: Source, plans: Sequence[ClipPlan]) -> Iterator[Clip]:
    """The clips of a source in the order of `plans`, each frame decoded once.

    A frame is made its final size when it is decoded, and let go of after its last clip.

    Raises:
        DataError: A frame cannot be decoded.
    """
    if source.kind == "image":
        for one in plans:
            inputs = {n: tuple(map(_picture, given)) for n, given in one.inputs.items()}
            pictures = media.read_image(source.path, alpha=one.alpha_mask)[None]
            yield _clip(one, pictures, inputs)
        return
    video = plans[0].video
    assert video is not None
    target = _Frames(video, [p.frames for p in plans], plans[0].bucket)
    beside = {
        name: [_stream(plans, name, i) for i in range(len(given))]
        for name, given in plans[0].inputs.items()
    }
    for number, one in enumerate(plans):
        inputs = {
            name: tuple(
                _picture(given) if stream is None else _channels(given.input, stream.take(number))
                for stream, given in zip(streams, one.inputs[name], strict=True)
            )
            for name, streams in beside.items()
        }
        yield _clip(one, target.take(number), inputs)


def picture(wanted: Input, path: Path) -> np.ndarray:
    """An image of an input, as it is: uint8, 1 H W C.

    Raises:
        DataError: It cannot be read.
    """
    if wanted.kind == "mask":
        return images.read_mask(path)[None]
    return media.read_image(path, alpha=wanted.alpha)[None]


def decode_all(
    plans: Iterable[ClipPlan], workers: int
) -> Iterator[tuple[ClipPlan, Clip | Exception]]:
    """Decode in threads, a few ahead; in order, and what goes wrong in the place of its clip."""

    def one(wanted: ClipPlan) -> Iterator[Clip]:
        yield next(decode(wanted.source, [wanted]))

    return read_ahead(plans, one, workers=max(1, workers), ahead=workers, in_order=True)


def conversions(plans: Iterable[ClipPlan], entry: DatasetEntry, rate: float) -> list[str]:
    """How frame rates and unusual pictures were handled: one sentence for each kind."""
    plans = list(plans)
    videos = {id(p.video): p.video for p in plans if p.video is not None and not p.video.images}
    said = _rates(list(videos.values()), entry, rate) + _cropped(plans, entry)
    remarked: dict[str, dict[str, None]] = {}
    for video in (*videos.values(), *_videos_beside(plans)):
        for remark in video.remarks:
            remarked.setdefault(remark, {})[video.path.name] = None
    for remark, names in sorted(remarked.items()):
        first = ", ".join(list(names)[:_NAMED])
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        said.append(f"{first}{more}: {remark}.")
    return said


def _videos_beside(plans: Iterable[ClipPlan]) -> list[VideoInfo]:
    given = (g for plan in plans for files in plan.inputs.values() for g in files)
    return [g.video for g in given if g.video is not None]


def _rates(videos: Sequence[VideoInfo], entry: DatasetEntry, rate: float) -> list[str]:
    if entry.source_fps is not None:
        said = (
            f"{_videos(len(videos))} taken at source_fps = {entry.source_fps:g}, converted to "
            f"{rate:g} fps."
        )
        return [said] if videos else []
    counts: dict[str, int] = {}
    for video in videos:
        fps = video.fps or rate
        if video.varies:
            said = f"a varying rate (about {fps:.3g} fps)"
        elif abs(fps / rate - 1) < frames.SAME_RATE:
            continue
        else:
            said = f"{fps:.4g} fps"
            if fps < rate:
                said += " (slower: frames are repeated)"
        counts[said] = counts.get(said, 0) + 1
    out = [
        f"{_videos(n)} at {said} converted to {rate:g} fps by time stamps."
        for said, n in sorted(counts.items())
    ]
    if out:
        out[-1] += " (musubi-tuner converts only with source_fps, so it cuts other clips.)"
    return out


def _cropped(plans: Sequence[ClipPlan], entry: DatasetEntry) -> list[str]:
    """What became of videos of another shape when nothing sorts them into buckets."""
    if entry.enable_bucket:
        return []
    lost: dict[str, None] = {}
    for plan in plans:
        ratio = plan.size[0] / plan.size[1] * plan.bucket[1] / plan.bucket[0]
        if plan.source.kind == "video" and min(ratio, 1 / ratio) < _KEPT:
            lost[plan.source.path.name] = None
    if not lost:
        return []
    width, height = entry.resolution
    named = ", ".join(list(lost)[:_NAMED]) + (" and others" if len(lost) > _NAMED else "")
    return [
        f"{_videos(len(lost))} cropped to {width}x{height}, which cuts off more than a quarter of each "
        f"frame: {named}. enable_bucket = true keeps their shape (musubi-tuner always does so for videos)."
    ]


def _videos(count: int) -> str:
    return f"{count} video{'s' if count != 1 else ''}"


def moves(wanted: Input, path: Path) -> bool:
    """Whether a file of an input is read as a video: a mask may be an image or a video."""
    if wanted.kind == "mask":
        return path.is_dir() or path.suffix.lower() in media.VIDEO_EXTENSIONS
    return wanted.kind == "video"


def _given(
    source: Source,
    entry: DatasetEntry,
    task: Task,
    beside: Mapping[Path, tuple[VideoInfo, np.ndarray]],
    wanted: np.ndarray,
) -> dict[str, tuple[Given, ...]]:
    """The files of each input, and which of their frames belong to the frames `wanted`."""
    found: dict[str, tuple[Given, ...]] = {}
    for one in entry.inputs:
        files: list[Given] = []
        for path in source.inputs.get(one.name, ()):
            if path not in beside:
                files.append(Given(input=one, path=path))
                continue
            video, shown = beside[path]
            if not one.hold and wanted[-1] >= len(shown):
                raise DataError(
                    f"{path.name}, the {one.name} of {source.path.name}, has {counted(len(shown), 'frame')} at "
                    f"{task.shape.frame_rate:g} fps, and {wanted[-1] + 1} are needed.",
                    fix="Use a longer one.",
                )
            frames = shown[np.minimum(wanted, len(shown) - 1)]  # one that ends early stands still
            files.append(Given(input=one, path=path, video=video, frames=frames))
        if files:
            found[one.name] = tuple(files)
    return found


def _check_masks(
    source: Source, size: Size, beside: Mapping[Path, tuple[VideoInfo, np.ndarray]]
) -> None:
    """Refuse a mask of other proportions: cropped like the clip, it would not cover the right place."""
    for path in source.inputs.get(LOSS_MASK.name, ()):
        video = beside[path][0] if path in beside else None
        width, height = (video.width, video.height) if video else media.image_size(path)
        if abs(width * size[1] / (height * size[0]) - 1) > _PROPORTIONS:
            raise DataError(
                f"The mask {path.name} of {source.path.name} has {width} x {height} pixels, other "
                f"proportions than the {size[0]} x {size[1]} of what it masks.",
                fix="Make the mask as large, or smaller in the same proportions.",
            )


def _picture(given: Given) -> np.ndarray:
    return picture(given.input, given.path)


def _stream(plans: Sequence[ClipPlan], name: str, number: int) -> _Frames | None:
    """The frames of a video beside the clips; None for an image."""
    given = [plan.inputs[name][number] for plan in plans]
    if given[0].video is None:
        return None
    size = plans[0].bucket if given[0].input.fit == "bucket" else None
    return _Frames(given[0].video, [g.frames for g in given], size)


def _channels(wanted: Input, frames: np.ndarray) -> np.ndarray:
    """A mask's video has one channel: its brightness."""
    return images.brightness(frames) if wanted.kind == "mask" else frames


def _bucket(size: Size, entry: DatasetEntry, task: Task) -> Size:
    return buckets.choose(
        size,
        entry.resolution,
        task.shape.side,
        enable=entry.enable_bucket,
        no_upscale=entry.bucket_no_upscale,
    )


def _timeline(path: Any, entry: DatasetEntry, rate: float) -> tuple[VideoInfo, np.ndarray]:
    """A video, and for each frame at the model's rate the frame of the file."""
    most = frames.needed(entry)
    source = entry.source_fps
    if most is None:
        info = media.probe_video(path)
    elif source is None:
        info = media.probe_video(path, seconds=most / rate)
    else:
        info = media.probe_video(path, frames=int(most * source / rate) + 2)
    if source is not None:
        return info, frames.by_source_fps(info.frames, source, rate)
    if info.images:  # pictures without times are taken as they come
        return info, np.arange(info.frames)
    return info, frames.by_timestamps(info.times, info.end, rate, info.tick)


def _usable(length: int, task: Task, options: Mapping[str, Any]) -> int:
    if task.usable_frames is not None:
        return int(task.usable_frames(length, options))
    return task.shape.fitting_frames(length)


def _too_short(
    source: Source,
    total: int,
    entry: DatasetEntry,
    task: Task,
    cut: bool,
) -> DataError:
    name, rate = source.path.name, f"{task.shape.frame_rate:g}"
    if cut:
        return DataError(
            f"{name} gives no clip that is long enough for the task {task.name!r}: it has {total} "
            f"frame{'s' if total != 1 else ''} at {rate} fps.",
            fix="Raise target_frames, or use a longer video.",
        )
    least = min(entry.target_frames)
    fits = task.shape.fitting_frames(total)
    return DataError(
        f"{name} has {total} frame{'s' if total != 1 else ''} at {rate} fps, and the smallest of "
        f"target_frames is {least}.",
        fix=f"Add {fits} to target_frames, or use a longer video." if total else "Remove it.",
    )


def fitted(wanted: Input, pictures: np.ndarray, size: Size) -> np.ndarray:
    """Pictures of an input at the size that the input asks for."""
    return buckets.resize_and_crop(pictures, size) if wanted.fit == "bucket" else pictures


def _clip(
    one: ClipPlan, pictures: np.ndarray, inputs: Mapping[str, tuple[np.ndarray, ...]]
) -> Clip:
    found = {
        name: tuple(
            fitted(given.input, found, one.bucket)
            for given, found in zip(one.inputs[name], frames, strict=True)
        )
        for name, frames in inputs.items()
    }
    (mask,) = found.pop(LOSS_MASK.name, (None,))
    if one.alpha_mask:
        pictures, mask = images.without_alpha(pictures)
        mask = buckets.resize_and_crop(mask, one.bucket)
    return Clip(
        name=one.name,
        frames=buckets.resize_and_crop(pictures, one.bucket),
        length=len(pictures),
        inputs=found,
        options=one.options,
        mask=mask,
    )


class _Frames:
    """One video read forwards; frames are kept from their first clip's turn to their last's.

    Args:
        video: The file.
        wanted: For each clip, the numbers of its frames in the file.
        size: Width and height that each frame is made when it is read; None: its own.
    """

    def __init__(self, video: VideoInfo, wanted: Sequence[np.ndarray], size: Size | None) -> None:
        self.wanted = wanted
        self.size = size
        self.last: dict[int, int] = {}
        for number, indices in enumerate(self.wanted):
            self.last.update(dict.fromkeys(indices.tolist(), number))
        self.reader = media.read_frames(video, list(self.last))
        self.kept: dict[int, np.ndarray] = {}

    def take(self, number: int) -> np.ndarray:
        """The frames of clip `number`, F H W 3."""
        indices = self.wanted[number].tolist()
        missing = set(indices) - self.kept.keys()
        while missing:
            index, picture = next(self.reader)
            if self.size is not None:
                picture = buckets.resize_and_crop(picture[None], self.size)[0]
            self.kept[index] = picture
            missing.discard(index)
        out = np.stack([self.kept[i] for i in indices])
        self.kept = {i: f for i, f in self.kept.items() if self.last[i] > number}
        return out
