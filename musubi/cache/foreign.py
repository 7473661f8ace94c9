"""Use records that musubi-tuner wrote.

Such a record has no typed header. Its name, keys and metadata tell its clip and size. A header is
made from these whenever the record is read; the file itself is not changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from musubi.cache.freshness import text_digest
from musubi.cache.header import RecordHeader
from musubi.cache.index import CacheIndex
from musubi.cache.store import Stored, text_name
from musubi.cache.survey import Origin, Settings, origin_of_text, seen_by_text, settings_of
from musubi.data import buckets, media
from musubi.data.sources import Source
from musubi.errors import DataError, counted
from musubi.plugin.architecture import Architecture, Task
from musubi.plugin.record import Field, declared, lacking

if TYPE_CHECKING:
    from musubi.config.dataset import DatasetEntry

_NAME = re.compile(
    r"(?P<stem>.+?)(_(?P<start>\d{5,})-(?P<length>\d{3,})(-(?P<part>\d{4,}))?)?"
    r"_(?P<width>\d{4,})x(?P<height>\d{4,})_[^_]+\.safetensors"
)


def said(count: int) -> str:
    """One sentence about adopted records: how many there are, and what cannot be checked."""
    if count == 1:
        return (
            "1 record of musubi-tuner is used as it is. Which model files, frame rate and options it "
            "was made with cannot be checked; delete it to have it made again."
        )
    return (
        f"{count} records of musubi-tuner are used as they are. Which model files, frame rate and "
        "options they were made with cannot be checked; delete them to have them made again."
    )


@dataclass(frozen=True)
class _Media:
    """The facts in the name of a media record."""

    name: str
    start: int
    length: int
    part: int | None
    size: tuple[int, int]
    head: Stored

    @property
    def latents(self) -> tuple[int, ...]:
        return tuple(self.head.shapes.get("latents", ()))


def adopt(
    cache_index: CacheIndex,
    entry: DatasetEntry,
    sources: Iterable[Source] | None,
    architecture: Architecture,
    task: Task,
) -> CacheIndex:
    """Give headers to the records of musubi-tuner that fit the dataset and the task.

    A record that does not fit says why in its `refused`.

    Args:
        cache_index: The records in the dataset's cache directory.
        entry: The dataset.
        sources: The sources of the dataset; None if they no longer exist.
        architecture: Whose records.
        task: The task that the records are for.

    Returns:
        The same index when there is nothing to adopt.
    """
    unnamed = {n: h for n, h in cache_index.media.items() if h is not None and h.header is None}
    words = {n: h for n, h in cache_index.text.items() if h is not None and h.header is None}
    if not unnamed and not words:
        return cache_index
    if sources is None:
        sources = _remembered(entry, unnamed)
    found = _Adopting(entry, architecture, task, settings_of(entry, task), unnamed, words)
    for source in sources:
        if not _has_own(cache_index, source, found.settings.plan):
            found.media(source)
        found.text(source)
    by_stem = {stem: list(names) for stem, names in cache_index.by_stem.items()}
    for name, head in found.out.items():
        if head.header is not None and head.header.kind == "media":
            by_stem.setdefault(head.header.stem, []).append(name)
    return replace(
        cache_index,
        media={n: found.out.get(n, h) for n, h in cache_index.media.items()},
        text={n: found.out.get(n, h) for n, h in cache_index.text.items()},
        by_stem=by_stem,
    )


def _has_own(cache_index: CacheIndex, source: Source, plan: str) -> bool:
    """Whether a source has records with a header, made as the dataset file says now."""
    heads = (cache_index.media[name] for name in cache_index.by_stem.get(source.stem, ()))
    headers = [head.header for head in heads if head is not None and head.header is not None]
    return any(h.plan == plan and h.source == source.path.name for h in headers)


def _remembered(entry: DatasetEntry, unnamed: Mapping[str, Stored]) -> list[Source]:
    """Sources that are gone, one for each stem that the names of their records tell."""
    stems: dict[str, None] = {}
    for name in unnamed:
        said = _NAME.fullmatch(name)
        if said is None:
            continue
        video = entry.kind == "video" and said["start"] is not None
        whole = name.rpartition("_")[0].rpartition("_")[0]
        stems[said["stem"] if video else whole] = None
    return [
        Source(path=entry.place / stem, stem=stem, kind=entry.kind, captions=("",), inputs={})
        for stem in stems
    ]


class _Adopting:
    def __init__(
        self,
        entry: DatasetEntry,
        architecture: Architecture,
        task: Task,
        settings: Settings,
        unnamed: Mapping[str, Stored],
        words: Mapping[str, Stored],
    ) -> None:
        self.entry = entry
        self.architecture = architecture
        self.task = task
        self.settings = settings
        self.words = words
        self.out: dict[str, Stored] = {}
        self.by_stem: dict[str, list[_Media]] = {}
        for name, head in unnamed.items():
            for stem, record in _read(name, head, entry.kind == "video"):
                self.by_stem.setdefault(stem, []).append(record)

    def media(self, source: Source) -> None:
        """The clips of one source."""
        fitting: list[_Media] = []
        for record in self.by_stem.get(source.stem, ()):
            reason = self.refusal(record, source)
            if reason is None:
                fitting.append(record)
            else:
                self.out[record.name] = record.head._replace(refused=reason)
        clips: dict[tuple[int, int], list[_Media]] = {}
        for record in sorted(fitting, key=lambda record: (record.start, record.length)):
            clips.setdefault((record.start, record.length), []).append(record)
        for parts in clips.values():
            parts.sort(key=lambda record: record.part or 0)
        if any([r.part or 0 for r in parts] != [*range(len(parts))] for parts in clips.values()):
            reason = "some sections of its clips have no record"
            self.out.update((r.name, r.head._replace(refused=reason)) for r in fitting)
            return
        for clip, parts in enumerate(clips.values()):
            for record in parts:
                header = self.header(source, record, clip, len(clips), len(parts))
                self.out[record.name] = record.head._replace(header=header)

    def header(
        self, source: Source, record: _Media, clip: int, clips: int, parts: int
    ) -> RecordHeader:
        """Make the header of a record."""
        stride = self.task.shape.stride
        return RecordHeader(
            kind="media",
            stem=source.stem,
            fields=tuple(sorted(record.head.shapes)),
            schema=self.task.schema.version,
            source=source.path.name,
            signature=_signature(Origin(source.paths)),
            plan=self.settings.plan,
            preprocessing=self.settings.preprocessing,
            bucket=(record.latents[3] * stride[2], record.latents[2] * stride[1]),
            start=record.start,
            length=record.length,
            clip=clip,
            clips=clips,
            part=record.part or 0,
            parts=parts,
            adopted=True,
        )

    def text(self, source: Source) -> None:
        """The caption of one source."""
        name = text_name(source.stem, self.architecture.suffix)
        head = self.words.get(name)
        if head is None:
            return
        fields = self.task.schema.text
        reason = _misfit(head, fields)
        if reason is not None:
            self.out[name] = head._replace(refused=reason)
            return
        origin = origin_of_text(seen_by_text(source, self.task))
        header = RecordHeader(
            kind="text",
            stem=source.stem,
            fields=tuple(sorted(head.shapes)),
            schema=self.task.schema.version,
            source=source.path.name,
            caption=text_digest(head.metadata.get("caption1", source.caption)),
            signature=_signature(origin) if origin else "",
            adopted=True,
        )
        self.out[name] = head._replace(header=header)

    def refusal(self, record: _Media, source: Source) -> str | None:
        """Why a record cannot be used for a source; None when it can."""
        reason = _misfit(record.head, self.task.schema.media)
        if reason is not None:
            return reason
        stride = self.task.shape.stride
        held = (record.latents[3] * stride[2], record.latents[2] * stride[1])
        if source.kind == "image":
            return self._of_image(record, source, held)
        width, height = record.size
        if held != record.size:
            return f"it holds a clip of {held[0]}x{held[1]}, and its name says {width}x{height}"
        if not self._gives_size(record.size):
            return f"it is of {width}x{height}, which is no bucket of the dataset file"
        if not self._gives_span(record.start, record.length):
            return (
                f"it holds {counted(record.length, 'frame')} from frame {record.start} on, and the dataset file "
                "cuts no such clip"
            )
        return None

    def _of_image(self, record: _Media, source: Source, held: tuple[int, int]) -> str | None:
        try:
            size = media.image_size(source.path)
        except (
            DataError,
            OSError,
        ):  # the file is gone or unreadable, so there is nothing to compare
            return None
        if size != record.size:
            return f"it was made from a picture of {record.size[0]}x{record.size[1]} pixels"
        entry = self.entry
        bucket = buckets.choose(
            size,
            entry.resolution,
            self.task.shape.side,
            enable=entry.enable_bucket,
            no_upscale=entry.bucket_no_upscale,
        )
        if held != bucket:
            return (
                f"it is of {held[0]}x{held[1]}, and the dataset file asks for "
                f"{bucket[0]}x{bucket[1]}"
            )
        return None

    def _gives_size(self, size: tuple[int, int]) -> bool:
        """Whether musubi-tuner would make videos of this size; it always uses buckets."""
        resolution, step = self.entry.resolution, self.task.shape.side
        if size == resolution or size in buckets.bucket_list(resolution, step):
            return True
        small = size[0] * size[1] <= resolution[0] * resolution[1]
        return self.entry.bucket_no_upscale and small

    def _gives_span(self, start: int, length: int) -> bool:
        """Whether the dataset file cuts such clips, from a video of whatever length."""
        entry = self.entry
        if entry.frame_extraction == "full":
            return start == 0 and length <= entry.max_frames
        if length not in entry.target_frames:
            return False
        mode = entry.frame_extraction
        if mode == "head" or (mode == "uniform" and entry.frame_sample == 1):
            return start == 0
        if mode == "chunk":
            return start % length == 0
        return mode != "slide" or start % entry.frame_stride == 0


def _read(name: str, head: Stored, video: bool) -> Iterable[tuple[str, _Media]]:
    """The stem of a record, and the other facts in its name."""
    said = _NAME.fullmatch(name)
    if said is None:
        return
    size = int(said["width"]), int(said["height"])
    if video and said["start"] is not None:
        part = None if said["part"] is None else int(said["part"])
        span = int(said["start"]), int(said["length"])
        yield said["stem"], _Media(name, *span, part, size, head)
    elif not video:
        whole = name.rpartition("_")[0].rpartition("_")[0]
        yield whole, _Media(name, 0, 1, None, size, head)


def _misfit(head: Stored, fields: tuple[Field, ...]) -> str | None:
    """Why another tool's record does not fit a task; None if it fits."""
    if head.twice:
        return f"it holds {head.twice!r} in two dtypes, and nothing says which is the newer"
    absent = lacking(fields, head.shapes)
    if absent:
        return f"it was made for another task (it has no {absent[0]!r})"
    for name, shape in head.shapes.items():
        field = declared(fields, name)
        if field is None:  # a task with fewer tensors can be trained on it
            continue
        sizes = dict(field.sizes)
        if len(shape) != len(field.dims) or any(
            sizes.get(letter, side) != side for letter, side in zip(field.dims, shape, strict=True)
        ):
            return f"it was made for another model (its {name!r} has the shape {shape})"
    return None


def _signature(origin: Origin) -> str:
    try:
        return origin.signature
    except OSError:  # the source is gone
        return ""
