"""Captions become text records: one encoder after the other, each over all stale captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from musubi.cache import foreign
from musubi.cache.caching_run import CachingRun, DeviceFullError, Summary
from musubi.cache.freshness import settings_digest, text_digest
from musubi.cache.header import RecordHeader
from musubi.cache.index import CacheIndex, Failure, delete_leftovers, read_index, write_failures
from musubi.cache.shares import Shares
from musubi.cache.store import (
    Stored,
    check_record,
    empty_caption_name,
    is_whole,
    metadata_of,
    read_head,
    read_record,
    text_name,
    write_record,
)
from musubi.cache.survey import Origin, judge_text, origin_of_text, seen_by_text
from musubi.cache.write_behind import WriteBehind
from musubi.data.clips import picture
from musubi.data.sources import scan
from musubi.errors import DataError, MusubiError, line_of
from musubi.plugin.record import lacking
from musubi.plugin.report import Progress
from musubi.plugin.runtime import Prompt, Record
from musubi.weights.temporary import sweep

if TYPE_CHECKING:
    from musubi.config.dataset import DatasetEntry

NO_PLAN = settings_digest({})
"""A caption's record depends on no setting of the dataset."""


@dataclass(kw_only=True)
class _Caption:
    """One text record while it is made.

    Args:
        path: Path of the record.
        source: Base name of the source, for messages; empty for the empty caption.
        stem: Stem of the source.
        text: The caption.
        seen: Name of an input → its files, for what the text encoders see beside the caption.
        origin: The same files; None when there are none.
        head: The head of the file, as it will be once the queue is written.
        place: The dataset of the caption.
        failed: Whether the caption is left out.
    """

    path: Path
    source: str
    stem: str
    text: str
    head: Stored | None
    place: _Place
    seen: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    origin: Origin | None = None
    failed: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        return f"the caption of {self.source}" if self.source else "the empty caption"


@dataclass(kw_only=True)
class _Place:
    """One dataset while it is cached."""

    entry: DatasetEntry
    cache_index: CacheIndex
    named: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)


def cache_captions(caching: CachingRun) -> Summary:
    """Make every text record that is missing or stale, that of the empty caption included.

    Each encoder fills in its part of the files and is freed before the next is loaded, so that
    neither two encoders nor the records of a whole dataset are ever in memory.

    Raises:
        DataError: A caption cannot be used and the run is strict, or there is none at all.
        RunError: The disk is full, or (a DeviceFullError) the device is too small for one caption.
    """
    return _TextRun(caching).run()


class _TextRun:
    def __init__(self, caching: CachingRun) -> None:
        self.shares = Shares(caching, "text")
        self.caching = self.shares.inside(caching)
        self.summary = Summary()
        self.left_alone = 0
        task = caching.wanted.task
        self.fields = task.schema.text
        self.components = [c.name for c in caching.architecture.of_role("text", task)]

    def run(self) -> Summary:
        places, captions = self.survey()
        todo = [
            (component, stale)
            for component in self.components
            if (stale := [c for c in captions if self.stale(c, component)])
        ]
        made = {id(c) for _, stale in todo for c in stale}
        self.summary.fresh += len(captions) - len(made)
        total = sum(len(stale) for _, stale in todo)
        try:
            with self.caching.report.progress(
                "Encoding captions", total, unit="caption"
            ) as self.bar:
                for component, stale in todo:
                    last = component == todo[-1][0]
                    self.share(component, [c for c in stale if not c.failed], complete=last)
                    self.caching.nets.free(component)
            self.summary.encoded += sum(1 for c in captions if id(c) in made and not c.failed)
            for place in places if self.caching.me.first else ():
                self.finish(place)
        finally:
            self.shares.close()
        if not self.left_alone and not any(c.source and not c.failed for c in captions):
            raise self.summary.nothing("text")
        return self.summary

    # what there is

    def survey(self) -> tuple[list[_Place], list[_Caption]]:
        """Every caption of every dataset that may have to be encoded, once for each record file."""
        caching = self.caching
        places: list[_Place] = []
        captions: list[_Caption] = []
        for entry in caching.dataset.datasets:
            cache_index = read_index(
                entry.cache_directory, caching.architecture, media=False, whole=True
            )
            if caching.gone(entry):
                self.summary.fresh += len(cache_index.text)
                self.left_alone += len(cache_index.text)
                continue
            found = scan(entry)
            cache_index = foreign.adopt(
                cache_index, entry, found.sources, caching.architecture, caching.wanted.task
            )
            place = _Place(entry=entry, cache_index=cache_index)
            places.append(place)
            for skip in found.skipped:
                caching.failed(self.summary, skip.path.name, skip.reason)
                place.failures[skip.path.name] = Failure(reason=skip.reason, signature="", plan="")
            for source, ending, text in (
                (s, *pair) for s in found.sources for pair in s.texts.items()
            ):
                name = text_name(source.stem, caching.architecture.suffix, ending)
                if name in place.named:
                    continue
                place.named.add(name)
                seen = seen_by_text(source, caching.wanted.task)
                caption = _Caption(
                    path=cache_index.path(name),
                    source=source.path.name,
                    stem=source.stem,
                    text=text,
                    head=cache_index.text.get(name),
                    place=place,
                    seen=seen,
                    origin=origin_of_text(seen),
                )
                if caption.head is not None and caption.head.damaged:
                    caption.head = None  # nothing of the old record is kept
                if self.left(caption):
                    self.left_alone += 1
                else:
                    captions.append(caption)
            captions.append(self.empty(place))
        return places, captions

    def empty(self, place: _Place) -> _Caption:
        path = place.cache_index.path(empty_caption_name(self.caching.architecture.suffix))
        try:
            head = read_head(path) if is_whole(path) else None
        except DataError:
            head = None
        return _Caption(path=path, source="", stem="", text="", head=head, place=place)

    def left(self, caption: _Caption) -> bool:
        """Whether the record is kept unchanged: a fresh one of musubi-tuner, or any with `--skip_existing`."""
        head = caption.head
        if head is None or head.header is None:
            return False
        if head.header.adopted:
            wanted = self.caching.wanted
            if judge_text(head, caption.text, wanted, origin=caption.origin) is not None:
                return False
            self.summary.adopted += 1
            return True
        if self.caching.skip_existing:
            self.summary.fresh += 1
        return self.caching.skip_existing

    def stale(self, caption: _Caption, component: str) -> bool:
        """Whether one encoder has to run for a caption."""
        wanted = self.caching.wanted.only([component])
        if judge_text(caption.head, caption.text, wanted, origin=caption.origin, complete=False):
            return True
        assert caption.head is not None and caption.head.header is not None
        header = caption.head.header
        return not header.adopted and component not in header.encoders

    def made_elsewhere(self, captions: Sequence[_Caption], component: str) -> list[bool]:
        """For which captions another process has run the encoder by now."""
        for caption in captions:
            try:
                caption.head = read_head(caption.path)
            except DataError:
                caption.head = None
        return [not self.stale(caption, component) for caption in captions]

    # making records

    def share(self, component: str, captions: Sequence[_Caption], *, complete: bool) -> None:
        """Run one encoder over this process's share of the stale captions."""
        dealt = self.shares.dealt(
            captions,
            title=f"Encoding captions by the {component}",
            path=lambda caption: caption.path,
            done=lambda some: self.made_elsewhere(some, component),
        )
        with closing(dealt):
            for portion in dealt:
                with WriteBehind(64) as self.writer:
                    self.encode(component, portion, complete=complete)

    def encode(self, component: str, captions: Sequence[_Caption], *, complete: bool) -> None:
        """Run one encoder over its stale captions."""
        for caption in captions:
            try:
                record = self.encoded(component, caption)
                check_record(record, self.fields, caption.name, complete=False)
            except DataError as error:
                self.failed(caption, error)
            except MusubiError:
                raise
            except Exception as error:  # what a network raises for one caption is that one's
                self.failed(caption, DataError(f"{component} cannot encode it: {line_of(error)}"))
            else:
                self.write(caption, component, record, complete=complete)
            self.bar.advance()

    def encoded(self, component: str, caption: _Caption) -> Record:
        """Encode one caption; the record is on the CPU. Captions are encoded one by one, since
        matrix products round differently in a batch.
        """
        caching = self.caching
        try:
            with torch.no_grad():
                prompt = self.prompt(caption)
                (found,) = caching.runtime.encode_text(caching.nets, component, [prompt])
                return {k: t.detach().cpu() for k, t in found.items()}
        except torch.OutOfMemoryError as error:
            raise DeviceFullError(
                f"The device has too little memory to encode {caption.name} with {component}.",
                fix="Use --device cpu, or a smaller dtype.",
                component=component,
            ) from error

    def prompt(self, caption: _Caption) -> Prompt:
        """What an encoder is given."""
        inputs = {one.name: one for one in self.caching.wanted.task.inputs}
        pictures = {
            name: tuple(picture(inputs[name], path) for path in files)
            for name, files in caption.seen.items()
        }
        return Prompt(text=caption.text, pictures=pictures)

    def write(self, caption: _Caption, component: str, record: Record, *, complete: bool) -> None:
        """Queue a record, joined with what other encoders wrote for the same caption."""
        old = caption.head.header if caption.head is not None else None
        fresh = self.header(caption)
        joins = (
            old is not None
            and not old.adopted
            and (old.caption, old.content) == (fresh.caption, fresh.content)
            and old.schema == fresh.schema
            and old.options == fresh.options
        )
        if joins:
            assert old is not None
            kept = tuple(name for name in old.fields if name not in record)
            encoders, dtypes = dict(old.encoders), dict(old.dtypes)
        else:
            kept, encoders, dtypes = (), {}, {}
        wanted = self.caching.wanted
        header = replace(
            fresh,
            fields=tuple(sorted((*kept, *record))),
            encoders={**encoders, component: wanted.encoders.get(component, "")},
            dtypes={**dtypes, component: self.caching.dtypes.get(component, "")},
        )
        absent = lacking(self.fields, header.fields)
        if complete and absent and len(header.encoders) == len(self.components):
            error = f"{caption.name}: no text encoder gave {absent[0]!r}, which the task declares."
            self.failed(caption, DataError(error))
            return
        metadata = metadata_of(self.caching.architecture, header, caption=caption.text)
        caption.head = Stored(metadata, {}, header)

        def caching() -> None:
            old_part = read_record(caption.path, kept.__contains__)[0] if kept else {}
            write_record(caption.path, {**old_part, **record}, self.fields, metadata)

        self.writer.put(caching)

    # small things

    def header(self, caption: _Caption) -> RecordHeader:
        """The header of a caption's record before any encoder has run."""
        wanted = self.caching.wanted
        return RecordHeader(
            kind="text",
            stem=caption.stem,
            options=dict(self.caching.options),
            schema=wanted.task.schema.version,
            source=caption.source,
            caption=text_digest(caption.text),
            signature=caption.origin.signature if caption.origin else "",
            content=caption.origin.content if caption.origin else "",
        )

    def failed(self, caption: _Caption, error: Exception) -> None:
        """Leave a caption out, and record the failure."""
        caption.failed = True
        self.caching.failed(self.summary, caption.name, error)
        if caption.source:
            caption.place.failures[caption.source] = Failure(
                reason=self.summary.failed[-1].reason,
                signature=text_digest(caption.text),
                plan=NO_PLAN,
            )

    def finish(self, place: _Place) -> None:
        """Delete leftovers, and remember what failed."""
        cache_index = place.cache_index
        sweep(cache_index.directory, again=True)
        if not self.caching.keep:
            self.summary.removed += delete_leftovers(
                cache_index,
                cache_index.text,
                place.named,
                place.failures,
                report=self.caching.report,
            )
        write_failures(cache_index.directory, self.caching.architecture, "text", place.failures)

    bar: Progress
    writer: WriteBehind
