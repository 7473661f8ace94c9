"""From a source to its clips: planned without decoding, then decoded in one pass, small at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from musubi.config.dataset import DatasetEntry
from musubi.data import buckets, frames, media
from musubi.data.buckets import Size
from musubi.data.media import VideoInfo
from musubi.data.sources import Source
from musubi.errors import DataError
from musubi.plugin.architecture import Architecture, Task
from musubi.plugin.runtime import Clip

_NAMED = 3
"""Files of one kind that a sentence names."""

T = TypeVar("T")
R = TypeVar("R")


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
        controls: The same for each control.
        video: The source, when it is a video.
        control_videos: Its controls, when they are videos.
        options: The architecture's own keys of the dataset.
    """

    source: Source
    bucket: Size
    size: Size
    start: int = 0
    length: int = 1
    total: int = 1
    frames: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    controls: tuple[np.ndarray, ...] = ()
    video: VideoInfo | None = None
    control_videos: tuple[VideoInfo, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

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
        architecture: Gives the frame rate and what sides are multiples of.
        task: Says how many of a clip's frames it uses.
        options: The architecture's own options, laid over those of the dataset.

    Raises:
        DataError: The file cannot be read, or is too short for any clip.
    """
    if source.kind == "image":
        size = media.image_size(source.path)
        return [
            ClipPlan(
                source=source,
                size=size,
                bucket=_bucket(size, entry, architecture),
                options=entry.options,
            )
        ]
    video, shown = _timeline(source.path, entry, architecture.frame_rate)
    found = [_timeline(path, entry, architecture.frame_rate) for path in source.controls]
    size = video.width, video.height
    plans: list[ClipPlan] = []
    spans = frames.windows(len(shown), entry)
    for start, length in spans:
        used = _usable(length, architecture, task, {**entry.options, **(options or {})})
        if used == 0:
            continue
        wanted = np.arange(start, start + used)
        plans.append(
            ClipPlan(
                source=source,
                size=size,
                bucket=_bucket(size, entry, architecture),
                start=start,
                length=length,
                total=len(shown),
                frames=shown[wanted],
                # a control that ends early stands still
                controls=tuple(c[np.minimum(wanted, len(c) - 1)] for _, c in found),
                video=video,
                control_videos=tuple(v for v, _ in found),
                options=entry.options,
            )
        )
    if not plans:
        raise _too_short(source, len(shown), entry, architecture, task, bool(spans))
    return plans


def decode(source: Source, plans: Sequence[ClipPlan]) -> Iterator[Clip]:
    """The clips of a source in the order of `plans`, each frame decoded once.

    A frame is made its final size when it is decoded, and let go of after its last clip.

    Raises:
        DataError: A frame cannot be decoded.
    """
    if source.kind == "image":
        for one in plans:
            controls = [media.read_image(p, alpha=True)[None] for p in source.controls]
            yield _clip(one, media.read_image(source.path)[None], controls)
        return
    streams = [_Frames(plans, None)]
    streams += [_Frames(plans, i) for i in range(len(source.controls))]
    for number, one in enumerate(plans):
        found = [stream.take(number) for stream in streams]
        yield _clip(one, found[0], found[1:])


def decode_all(
    plans: Iterable[ClipPlan], workers: int
) -> Iterator[tuple[ClipPlan, Clip | Exception]]:
    """Decode in threads, a few ahead; in order, and what goes wrong in the place of its clip."""

    def one(wanted: ClipPlan) -> Clip:
        return next(decode(wanted.source, [wanted]))

    return ahead(one, plans, workers)


def ahead(
    work: Callable[[T], R], tasks: Iterable[T], workers: int
) -> Iterator[tuple[T, R | Exception]]:
    """Do `work` in threads, at most two a thread ahead; results and errors in the order of tasks."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        try:
            for task in tasks:
                waiting.append((task, pool.submit(work, task)))
                if len(waiting) > 2 * workers:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def conversions(plans: Iterable[ClipPlan], entry: DatasetEntry, rate: float) -> list[str]:
    """What was done about frame rates and odd pictures, one sentence for each kind that was met."""
    plans = list(plans)
    videos = {id(p.video): p.video for p in plans if p.video is not None and not p.video.images}
    said = _rates(list(videos.values()), entry, rate)
    remarked: dict[str, dict[str, None]] = {}
    for video in (*videos.values(), *(c for p in plans for c in p.control_videos)):
        for remark in video.remarks:
            remarked.setdefault(remark, {})[video.path.name] = None
    for remark, names in sorted(remarked.items()):
        first = ", ".join(list(names)[:_NAMED])
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        said.append(f"{first}{more}: {remark}.")
    return said


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
    return [
        f"{_videos(n)} at {said} converted to {rate:g} fps by time stamps."
        for said, n in sorted(counts.items())
    ]


def _videos(count: int) -> str:
    return f"{count} video{'s' if count != 1 else ''}"


def _result(task: T, future: Future[R]) -> tuple[T, R | Exception]:
    error = future.exception()
    if isinstance(error, Exception):
        return task, error
    return task, future.result()


def _bucket(size: Size, entry: DatasetEntry, architecture: Architecture) -> Size:
    return buckets.choose(
        size,
        entry.resolution,
        architecture.spatial_multiple,
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


def _usable(length: int, architecture: Architecture, task: Task, options: Mapping[str, Any]) -> int:
    if task.usable_frames is not None:
        return int(task.usable_frames(length, options))
    step = architecture.temporal_multiple
    return (length - 1) // step * step + 1


def _too_short(
    source: Source,
    total: int,
    entry: DatasetEntry,
    architecture: Architecture,
    task: Task,
    cut: bool,
) -> DataError:
    name, rate = source.path.name, f"{architecture.frame_rate:g}"
    if cut:
        return DataError(
            f"{name} gives no clip that is long enough for the task {task.name!r}: it has {total} "
            f"frame{'s' if total != 1 else ''} at {rate} fps.",
            fix="Raise target_frames, or use a longer video.",
        )
    least = min(entry.target_frames)
    fits = (total - 1) // entry.temporal_multiple * entry.temporal_multiple + 1
    return DataError(
        f"{name} has {total} frame{'s' if total != 1 else ''} at {rate} fps, and the smallest of "
        f"target_frames is {least}.",
        fix=f"Add {fits} to target_frames, or use a longer video." if total else "Remove it.",
    )


def _clip(one: ClipPlan, pictures: np.ndarray, controls: Sequence[np.ndarray]) -> Clip:
    return Clip(
        name=one.name,
        frames=buckets.resize_and_crop(pictures, one.bucket),
        length=len(pictures),
        controls=tuple(buckets.resize_and_crop(c, one.bucket) for c in controls),
        options=one.options,
    )


class _Frames:
    """One video read forwards; frames are kept from their first clip's turn to their last's.

    Args:
        plans: The clips, all of one source and of one bucket.
        control: Which control to read; None reads the source.
    """

    def __init__(self, plans: Sequence[ClipPlan], control: int | None) -> None:
        self.wanted = [p.frames if control is None else p.controls[control] for p in plans]
        self.bucket = plans[0].bucket
        self.last: dict[int, int] = {}
        for number, indices in enumerate(self.wanted):
            self.last.update(dict.fromkeys(indices.tolist(), number))
        info = plans[0].video if control is None else plans[0].control_videos[control]
        assert info is not None
        self.reader = media.read_frames(info, list(self.last))
        self.kept: dict[int, np.ndarray] = {}

    def take(self, number: int) -> np.ndarray:
        """The frames of clip `number`, F H W 3."""
        indices = self.wanted[number].tolist()
        missing = set(indices) - self.kept.keys()
        while missing:
            index, picture = next(self.reader)
            self.kept[index] = buckets.resize_and_crop(picture[None], self.bucket)[0]
            missing.discard(index)
        out = np.stack([self.kept[i] for i in indices])
        self.kept = {i: f for i, f in self.kept.items() if self.last[i] > number}
        return out
