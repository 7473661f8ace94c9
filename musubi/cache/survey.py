"""Compares the sources of a dataset with its records: which are fresh, and why the others are not."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi.cache.freshness import (
    PREPROCESSING_VERSION,
    Wanted,
    content_digest,
    made_otherwise,
    settings_digest,
    signature,
    stamp,
    text_digest,
)
from musubi.cache.header import RecordHeader
from musubi.cache.index import CacheIndex
from musubi.cache.store import Stored, rewrite_header, text_name
from musubi.data.frames import DECODING_VERSION
from musubi.errors import MusubiError
from musubi.plugin.architecture import Architecture, Task

if TYPE_CHECKING:
    from musubi.config.dataset import DatasetEntry
    from musubi.data.sources import Source

_TICK = 3 * 10**9
"""In nanoseconds; more than the two seconds to which some file systems round times."""

NO_RECORD = "no record"
OTHER_SETTINGS = "made with other settings in the dataset file, or by an older version of musubi"
DAMAGED = "its record is damaged"
FOREIGN = "its record was written by musubi-tuner and cannot be used"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Digests of what a dataset entry decides.

    Args:
        plan: Which clips a source gives, and of what size.
        preprocessing: What else affects a clip, besides its size, its first frame and its length.
    """

    plan: str
    preprocessing: str


def settings_of(entry: DatasetEntry, task: Task) -> Settings:
    """The digests for one dataset.

    Keys that change no clip (repeats, batch size, captions, directories) are left out.
    """
    shaping: dict[str, Any] = {
        "version": PREPROCESSING_VERSION,
        "options": dict(entry.options),
    }
    if entry.alpha_mask:  # added only if it is set, so that older records stay fresh
        shaping["alpha_mask"] = True
    choosing: dict[str, Any] = {
        "resolution": tuple(entry.resolution),
        "enable_bucket": entry.enable_bucket,
        "bucket_no_upscale": entry.bucket_no_upscale,
        "multiple": (task.shape.side, task.shape.period),
        "usable_frames": task.usable_frames.address if task.usable_frames else None,
    }
    if entry.kind == "video":
        shaping |= {"source_fps": entry.source_fps, "frame_rate": task.shape.frame_rate}
        shaping["decoding"] = DECODING_VERSION
        names = ("target_frames", "frame_extraction", "frame_stride", "frame_sample", "max_frames")
        choosing |= {name: getattr(entry, name) for name in names}
    return Settings(
        plan=settings_digest({**shaping, **choosing}), preprocessing=settings_digest(shaping)
    )


def seen_by_text(source: Source, task: Task) -> dict[str, tuple[Path, ...]]:
    """Name of an input → its files, for what the text encoders look at beside the caption."""
    seen = [one.name for one in task.inputs if one.seen_by_text]
    return {name: source.inputs[name] for name in seen if name in source.inputs}


def origin_of_text(seen: Mapping[str, Sequence[Path]]) -> Origin | None:
    """The pictures that a text record depends on, besides its caption; None if there are none."""
    paths = [path for given in seen.values() for path in given]
    return Origin(paths) if paths else None


class Origin:
    """The signature and the content digest of files; each is computed at most once.

    The signature is always taken before the content, so that a file that changes between them has
    another signature from then on.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._signature: str | None = None
        self._content: str | None = None
        self._stamp: tuple[Any, ...] = ()
        self._recent = False

    def begin(self) -> None:
        """Remember the files' times and sizes before they are opened."""
        now = time.time_ns()
        self._stamp = stamp(self._paths)
        self._recent = any(changed > now - _TICK for _, _, changed, *_ in self._stamp)
        self._signature = signature(self._paths)
        self._content = None

    def touched(self) -> bool:
        """Whether the files are no longer as they were at `begin`."""
        try:
            if stamp(self._paths) != self._stamp:
                return True
            # A file that changed a moment ago can change again within one tick of the disk's clock.
            return self._recent and content_digest(self._paths) != self.content
        except OSError:
            return True

    @property
    def signature(self) -> str:
        """Sizes and times."""
        if self._signature is None:
            self._signature = signature(self._paths)
        return self._signature

    @property
    def content(self) -> str:
        """A digest of all bytes."""
        if self._content is None:
            _ = self.signature
            self._content = content_digest(self._paths)
        return self._content

    def same_as(self, header: RecordHeader) -> bool:
        """Whether the record was made of these bytes; they are read only when sizes or times differ."""
        return header.signature == self.signature or header.content == self.content


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """The state of one source's records, found without opening the source.

    Args:
        names: File names of its fresh records, in the order of clips and sections.
        reason: Why they are not complete and fresh; None when they are.
        renewed: The files have new times but the same bytes, so the headers should be updated.
        found: Whether there was any record at all.
    """

    names: tuple[str, ...] = ()
    reason: str | None = None
    renewed: bool = False
    found: bool = False


def judge_media(
    source: Source, origin: Origin, cache_index: CacheIndex, wanted: Wanted, settings: Settings
) -> SourceState:
    """Whether all the media records that a source should have are there and fresh."""
    heads = {
        name: head
        for name in cache_index.by_stem.get(source.stem, ())
        if (head := cache_index.media[name]) is not None
        and head.header is not None
        and head.header.source == source.path.name
    }
    if not heads:
        foreign = [cache_index.media[name] for name in cache_index.foreign.get(source.stem, ())]
        reason = next((unusable(head) for head in foreign if head is not None), NO_RECORD)
        return SourceState(reason=reason, found=bool(foreign))
    if any(head.damaged for head in heads.values()):
        return SourceState(reason=DAMAGED, found=True)
    current = {n: h.header for n, h in heads.items() if h.header and h.header.plan == settings.plan}
    if not current:
        return SourceState(reason=OTHER_SETTINGS, found=True)
    if not all(origin.same_as(header) for header in current.values()):
        return SourceState(reason="the file has changed", found=True)
    for header in current.values():
        reason = made_otherwise(header, wanted, wanted.task.schema.media)
        if reason is not None:
            return SourceState(reason=reason, found=True)
    placed = {(h.clip, h.part): (n, h) for n, h in current.items()}
    names: list[str] = []
    for clip in range(next(iter(current.values())).clips):
        parts = placed[clip, 0][1].parts if (clip, 0) in placed else 1
        for part in range(parts):
            if (clip, part) not in placed:
                return SourceState(reason="some of its clips have no record", found=True)
            names.append(placed[clip, part][0])
    renewed = any(header.signature != origin.signature for header in current.values())
    return SourceState(names=tuple(names), renewed=renewed, found=True)


def unusable(head: Stored) -> str:
    """Why a record that musubi-tuner wrote is not used."""
    return f"{FOREIGN}: {head.refused}" if head.refused else FOREIGN


def judge_alone(header: RecordHeader, wanted: Wanted, settings: Settings) -> str | None:
    """Why a media record whose source is gone cannot be used; None when it can."""
    if header.plan != settings.plan:
        return OTHER_SETTINGS
    return made_otherwise(header, wanted, wanted.task.schema.media)


def judge_text(
    head: Stored | None,
    caption: str | None,
    wanted: Wanted,
    *,
    origin: Origin | None = None,
    complete: bool = True,
) -> str | None:
    """Why a text record is not fresh; None when it is.

    Args:
        head: The head of the record, or None if there is no record.
        caption: The current caption; None if its file is gone.
        wanted: What the record must have been made with; may be limited to one component.
        origin: The pictures that the text encoders see beside the caption, where they see some.
        complete: Whether every field of the schema must be there.
    """
    if head is None:
        return NO_RECORD
    if head.damaged:
        return DAMAGED
    if head.header is None:
        return unusable(head)
    if caption is not None and head.header.caption != text_digest(caption):
        return "the caption has changed"
    if origin is not None and not origin.same_as(head.header):
        return "a picture that the text encoder sees has changed"
    fields = wanted.task.schema.text if complete else ()
    return made_otherwise(head.header, wanted, fields)


def text_head(
    stem: str, cache_index: CacheIndex, architecture: Architecture, ending: str = ""
) -> Stored | None:
    """The head of the text record of the source with that stem: of its first caption, or another."""
    return cache_index.text.get(text_name(stem, architecture.suffix, ending))


def renew(cache_index: CacheIndex, names: tuple[str, ...], origin: Origin) -> None:
    """Update the file times in headers if the bytes are the same. If this fails, only time is lost."""
    for name in names:
        head = cache_index.media[name]
        if head is not None and head.header is not None:
            try:
                rewrite_header(
                    cache_index.path(name), replace(head.header, signature=origin.signature)
                )
            except MusubiError:  # a read-only cache works too
                return
