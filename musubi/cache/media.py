"""Images and videos become media records: threads decode, the device encodes, a thread writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from musubi.cache.caching_run import CachingRun, DeviceFullError, Summary
from musubi.cache.index import delete_leftovers, write_failures
from musubi.cache.loss_weight import weighted
from musubi.cache.shares import Shares
from musubi.cache.stale_clips import CachedDataset, StaleClip, StaleClips, named_size
from musubi.cache.store import check_record, metadata_of, write_record
from musubi.cache.tasks import encoders_of
from musubi.cache.write_behind import WriteBehind
from musubi.data import clips as data_clips
from musubi.data.read_ahead import read_ahead
from musubi.errors import DataError, MusubiError, RunError, counted, line_of
from musubi.plugin.report import Progress
from musubi.plugin.runtime import Clip, Record
from musubi.weights.temporary import sweep

if TYPE_CHECKING:
    from musubi.data.clips import ClipPlan

_ATTEMPTS = 3
"""How often to encode a source if its files change while they are read."""


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """One clip on its way to the encoder."""

    work: StaleClip
    index: int
    plan: ClipPlan
    clip: Clip


def cache_media(caching: CachingRun) -> Summary:
    """Make every media record that is missing or stale.

    Raises:
        DataError: A file cannot be used and the run is strict, or no file at all gave a record.
        RunError: The disk is full, or (a DeviceFullError) the device is too small for one clip.
    """
    return _MediaRun(caching).run()


class _MediaRun:
    def __init__(self, caching: CachingRun) -> None:
        self.shares = Shares(caching, "media")
        self.caching = self.shares.inside(caching)
        self.summary = Summary()
        self.list = StaleClips(self.caching, self.summary)
        self.changed: set[int] = set()  # ids of work whose files changed while they were read

    def run(self) -> Summary:
        places, pending = self.list.survey()
        dealt = self.shares.dealt(
            pending,
            title="Encoding clips",
            path=lambda work: work.place.cache_index.path(work.source.path.name),
            done=self.list.made_elsewhere,
        )
        try:
            with contextlib.closing(dealt):
                for portion in dealt:
                    self.make(portion)
            for place in places if self.caching.me.first else ():
                self.finish(place)
        finally:
            self.shares.close()
        if not self.summary.usable:
            raise self.summary.nothing("latents")
        return self.summary

    def make(self, pending: Sequence[StaleClip]) -> None:
        """Make the records of some sources. If files change while they are read, their records are
        made again.
        """
        for _ in range(_ATTEMPTS):
            work = self.list.plan(pending)
            if work:
                self.encode(work)
            pending = [self.list.again(one) for one in work if id(one) in self.changed]
            self.changed.clear()
            if not pending:
                break
        for one in pending:
            self.list.failed(one, DataError("it changes while it is read"))

    def encode(self, work: Sequence[StaleClip]) -> None:
        """Decode, encode and write the remaining clips."""
        caching = self.caching

        def decode(one: StaleClip) -> Iterator[_Decoded]:
            # Read here, in the thread, before the header asks for it.
            _ = one.origin.content
            try:
                found = data_clips.decode(one.source, [plan for _, plan in one.plans])
                for (index, plan), clip in zip(one.plans, found, strict=True):
                    yield _Decoded(work=one, index=index, plan=plan, clip=clip)
            finally:
                # What is recorded must be what was decoded.
                if one.origin.touched():
                    self.changed.add(id(one))

        total = sum(len(one.plans) for one in work)
        with (
            caching.report.progress("Encoding clips", total, unit="clip") as bar,
            WriteBehind() as writer,
            contextlib.closing(
                read_ahead(
                    work,
                    decode,
                    workers=caching.workers,
                    ahead=2,
                    stalled=self.list.stalled,
                )
            ) as decoded,
        ):
            self.bar, self.writer = bar, writer
            for one, found in decoded:
                if isinstance(found, Exception):
                    if id(one) not in self.changed:
                        self.list.failed(one, found)
                    continue
                self.send(found)

    def send(self, one: _Decoded) -> None:
        """Encode a clip, and queue its records for writing."""
        try:
            records = weighted(one.clip, self.encoded(one), self.caching.wanted.task)
            for record in records:
                check_record(record, self.list.fields, one.clip.name)
            sectioned = self.list.sectioned and one.work.source.kind == "video"
            if len(records) != 1 and not sectioned:
                raise RunError(
                    f"{one.clip.name}: the architecture gave {counted(len(records), 'record')} for one clip, "
                    "and its schema does not say that clips are cut into sections."
                )
        except DataError as error:
            self.list.failed(one.work, error, one.clip.name)
        else:
            for part, record in enumerate(records):
                self.write(one, record, part, len(records))
        self.bar.advance(1)

    def encoded(self, one: _Decoded) -> tuple[Record, ...]:
        """The records of a clip, on the CPU.

        Clips are encoded one by one: in the company of others, the last bits would be others.

        Raises:
            DataError: What the network raises for this clip.
            DeviceFullError: The device is too small for it.
        """
        caching = self.caching
        try:
            with torch.no_grad():
                (records,) = caching.runtime.encode_media(caching.nets, [one.clip])
                return tuple({k: t.detach().cpu() for k, t in r.items()} for r in records)
        except torch.OutOfMemoryError as error:
            vae = encoders_of(caching.architecture, caching.wanted.task, "media")[0]
            raise DeviceFullError(
                f"{one.clip.name}: the device has too little memory to encode it.",
                fix="Lower the resolution or the frames in the dataset file, or use the options "
                "that save memory in `musubi cache latents --help`.",
                component=vae.name,
                size=(*one.plan.bucket, one.plan.length),
            ) from error
        except MusubiError:
            raise
        except Exception as error:  # what a network raises for one clip is that one's
            raise DataError(f"{one.clip.name} cannot be encoded: {line_of(error)}") from error

    def write(self, one: _Decoded, record: Record, part: int, parts: int) -> None:
        """Queue one record for writing."""
        name = self.list.name(one.plan, part)
        path = one.work.place.cache_index.path(name)
        header = replace(
            self.list.header(one.work, one.index, one.plan),
            fields=tuple(sorted(record)),
            content=one.work.origin.content,
            part=part,
            parts=parts,
        )
        video = one.work.source.kind == "video"
        metadata = metadata_of(
            self.caching.architecture,
            header,
            size=named_size(one.plan),
            frames=one.plan.length if video else None,
        )
        self.writer.put(lambda: write_record(path, record, self.list.fields, metadata))
        one.work.place.named.add(name)
        one.work.written.append(name)
        self.summary.encoded += 1

    def finish(self, place: CachedDataset) -> None:
        """Delete leftovers, and remember what failed."""
        cache_index = place.cache_index
        sweep(cache_index.directory, again=True)
        if not self.caching.keep:
            self.summary.removed += delete_leftovers(
                cache_index,
                cache_index.media,
                place.named,
                place.failures,
                report=self.caching.report,
            )
        write_failures(cache_index.directory, self.caching.architecture, "media", place.failures)

    bar: Progress
    writer: WriteBehind
