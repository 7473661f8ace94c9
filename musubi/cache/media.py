"""Images and videos become media records: threads decode, the device encodes, a thread writes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from musubi.cache.failures import Failure, write_failures
from musubi.cache.freshness import made_otherwise
from musubi.cache.header import Header
from musubi.cache.job import Job, Summary
from musubi.cache.leftovers import delete_leftovers, sweep
from musubi.cache.shelf import Shelf, read_shelf
from musubi.cache.store import (
    check_record,
    media_name,
    metadata_of,
    rewrite_header,
    write_record,
)
from musubi.cache.survey import Origin, Settings, judge_media, renew, settings_of
from musubi.cache.threads import WriteBehind, read_ahead
from musubi.data import clips as data_clips
from musubi.data.sources import scan
from musubi.errors import DataError, RunError
from musubi.spec.report import Progress
from musubi.spec.runtime import Clip, Record

if TYPE_CHECKING:
    from musubi.config.dataset import DatasetEntry
    from musubi.data.clips import ClipPlan
    from musubi.data.sources import Source

_PENDING = 4
"""Batches' worth of clips that may wait for others of their size before a short batch is encoded."""


@dataclass(kw_only=True)
class _Place:
    """One dataset while it is cached."""

    entry: DatasetEntry
    shelf: Shelf
    settings: Settings
    named: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    plans: list[ClipPlan] = field(default_factory=list)


@dataclass(kw_only=True)
class _Work:
    """One source that has to be opened."""

    place: _Place
    source: Source
    origin: Origin
    plans: list[tuple[int, ClipPlan]] = field(default_factory=list)
    clips: int = 0


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """One clip on its way to the encoder."""

    work: _Work
    index: int
    plan: ClipPlan
    clip: Clip


def cache_media(job: Job) -> Summary:
    """Make every media record that is missing or stale.

    Raises:
        DataError: A file cannot be used and the run is strict, or no file at all gave a record.
        RunError: The disk is full, or the device has too little memory for one clip.
    """
    return _MediaRun(job).run()


class _MediaRun:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.summary = Summary()
        self.fields = job.wanted.task.schema.media
        self.sectioned = job.wanted.task.schema.sectioned

    def run(self) -> Summary:
        places, pending = self.survey()
        work = self.plan(pending)
        if work:
            self.encode(work)
        for place in places:
            self.finish(place)
        if not self.summary.usable:
            raise self.summary.nothing("latents")
        return self.summary

    # what there is

    def survey(self) -> tuple[list[_Place], list[_Work]]:
        """Set the sources aside whose records are all fresh; the others have to be opened."""
        job = self.job
        places: list[_Place] = []
        pending: list[_Work] = []
        for entry in job.dataset.datasets:
            shelf = read_shelf(entry.cache_directory, job.architecture, text=False)
            if job.gone(entry):
                self.summary.fresh += len(shelf.media)
                continue
            found = scan(entry)
            settings = settings_of(entry, job.architecture, job.wanted.task)
            place = _Place(entry=entry, shelf=shelf, settings=settings)
            places.append(place)
            for skip in found.skipped:
                job.failed(self.summary, skip.path.name, skip.reason)
                place.failures[skip.path.name] = Failure(reason=skip.reason, signature="", plan="")
            for source in found.sources:
                origin = Origin(source)
                verdict = judge_media(source, origin, place.shelf, job.wanted, place.settings)
                if verdict.reason is None:
                    place.named.update(verdict.names)
                    self.summary.fresh += len(verdict.names)
                    if verdict.renewed:
                        renew(place.shelf, verdict.names, origin)
                else:
                    pending.append(_Work(place=place, source=source, origin=origin))
        return places, pending

    def plan(self, pending: Sequence[_Work]) -> list[_Work]:
        """Open the sources: which clips each gives, and which of them have to be encoded."""
        job = self.job
        task = job.wanted.task

        def probe(work: _Work) -> Iterable[list[ClipPlan]]:
            return [
                data_clips.plan(work.source, work.place.entry, job.architecture, task, job.options)
            ]

        out: list[_Work] = []
        with (
            job.report.progress("Looking at files", len(pending), unit="file") as bar,
            contextlib.closing(
                read_ahead(pending, probe, workers=job.workers, ahead=64, stalled=self.stalled)
            ) as probed,
        ):
            for work, found in probed:
                bar.advance()
                if isinstance(found, Exception):
                    self.failed(work, found)
                    continue
                work.clips = len(found)
                work.place.plans += found
                work.plans = [pair for pair in enumerate(found) if not self.settled(work, *pair)]
                if work.plans:
                    out.append(work)
        for place in {id(w.place): w.place for w in pending}.values():
            rate = job.architecture.frame_rate
            for note in data_clips.conversions(place.plans, place.entry, rate):
                job.report.note(note)
        out.sort(key=lambda w: (w.place.entry.index, w.source.path.name))
        return out

    def settled(self, work: _Work, index: int, plan: ClipPlan) -> bool:
        """Whether a clip needs no encoding; gives its records new headers where that is enough."""
        first = self.name(plan, 0)
        head = work.place.shelf.media.get(first)
        if head is None:
            return False
        if head.header is None:
            return self.job.skip_existing and self.adopt(work, index, plan)
        parts = [self.name(plan, part) for part in range(head.header.parts)]
        headers = [
            (name, known.header)
            for name in parts
            if (known := work.place.shelf.media.get(name)) is not None and known.header is not None
        ]
        if self.job.skip_existing:
            work.place.named.update(parts)
            self.summary.fresh += len(headers)
            return True
        wanted = self.header(work, index, plan)
        if len(headers) < len(parts) or any(
            header.preprocessing != wanted.preprocessing
            or (header.source, header.bucket) != (wanted.source, wanted.bucket)
            or (header.start, header.length) != (wanted.start, wanted.length)
            or made_otherwise(header, self.job.wanted, self.fields) is not None
            or not work.origin.same_as(header)
            for _, header in headers
        ):
            return False
        for name, header in headers:
            renewed = replace(
                header,
                plan=wanted.plan,
                clip=index,
                clips=work.clips,
                signature=work.origin.signature,
            )
            if renewed != header:
                rewrite_header(work.place.shelf.path(name), renewed)
                self.summary.renewed += 1
            else:
                self.summary.fresh += 1
            work.place.named.add(name)
        return True

    def adopt(self, work: _Work, index: int, plan: ClipPlan) -> bool:
        """Give our header to records of a clip that another tool wrote."""
        shelf = work.place.shelf
        names: list[str] = []
        while (name := self.name(plan, len(names))) in shelf.media and name not in names:
            names.append(name)
        heads = [head for name in names if (head := shelf.media[name]) is not None]
        if len(heads) < len(names) or any(head.header is not None for head in heads):
            return False
        for part, (name, head) in enumerate(zip(names, heads, strict=True)):
            header = replace(
                self.header(work, index, plan),
                fields=tuple(sorted(head.shapes)),
                content=work.origin.content,
                encoders={},
                dtypes={},
                options={},
                part=part,
                parts=len(names),
                adopted=True,
            )
            rewrite_header(shelf.path(name), header)
            work.place.named.add(name)
            self.summary.adopted += 1
        return True

    # making records

    def encode(self, work: Sequence[_Work]) -> None:
        """Decode, encode and write what is left."""
        job = self.job

        def decode(one: _Work) -> Iterator[_Decoded]:
            _ = one.origin.content  # read here, in the thread, before the header asks for it
            found = data_clips.decode(one.source, [plan for _, plan in one.plans])
            for (index, plan), clip in zip(one.plans, found, strict=True):
                yield _Decoded(work=one, index=index, plan=plan, clip=clip)

        total = sum(len(one.plans) for one in work)
        waiting: dict[Any, list[_Decoded]] = {}
        with (
            job.report.progress("Encoding clips", total, unit="clip") as bar,
            WriteBehind() as writer,
            contextlib.closing(
                read_ahead(
                    work,
                    decode,
                    workers=job.workers,
                    ahead=max(2, job.batch_size),
                    stalled=self.stalled,
                )
            ) as decoded,
        ):
            self.bar, self.writer, self.began, self.done = bar, writer, time.monotonic(), 0
            for one, found in decoded:
                if isinstance(found, Exception):
                    self.failed(one, found)
                    continue
                group = waiting.setdefault(_shape(found.clip), [])
                group.append(found)
                if len(group) < job.batch_size:
                    if sum(map(len, waiting.values())) < _PENDING * job.batch_size:
                        continue
                    group = max(waiting.values(), key=len)
                self.send(waiting.pop(_shape(group[0].clip)))
            for group in waiting.values():
                self.send(group)

    def send(self, batch: Sequence[_Decoded]) -> None:
        """Encode clips of one size, and queue their records for writing."""
        for one, records in zip(batch, self.encoded(batch), strict=True):
            if isinstance(records, Exception):
                self.failed(one.work, records, one.clip.name)
                continue
            try:
                for record in records:
                    check_record(record, self.fields, one.clip.name)
                if len(records) != 1 and not (self.sectioned and one.work.source.kind == "video"):
                    raise RunError(
                        f"{one.clip.name}: the architecture gave {len(records)} records for one clip, "
                        "and its schema does not say that clips are cut into sections."
                    )
            except DataError as error:
                self.failed(one.work, error, one.clip.name)
                continue
            for part, record in enumerate(records):
                self.write(one, record, part, len(records))
        self.done += len(batch)
        rate = self.done / max(time.monotonic() - self.began, 1e-9)
        self.bar.advance(len(batch), **{"clips/s": round(rate, 2)})

    def encoded(self, batch: Sequence[_Decoded]) -> list[tuple[Record, ...] | Exception]:
        """One tuple of records for each clip, on the CPU, or what went wrong with it.

        When memory runs out or one of several clips is refused, halves are tried.
        """
        job = self.job
        try:
            with torch.no_grad():
                found = job.runtime.encode_media(job.nets, [one.clip for one in batch])
                return [
                    tuple({k: t.detach().cpu() for k, t in record.items()} for record in records)
                    for records in found
                ]
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise RunError(
                    f"{batch[0].clip.name}: the device has too little memory to encode it.",
                    fix="Lower the resolution or the frames in the dataset file, or use the options "
                    "that save memory in `musubi cache latents --help`.",
                ) from error
        except DataError as error:
            if len(batch) == 1:
                return [error]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(batch) // 2
        return self.encoded(batch[:middle]) + self.encoded(batch[middle:])

    def write(self, one: _Decoded, record: Record, part: int, parts: int) -> None:
        """Queue one record for writing."""
        name = self.name(one.plan, part)
        path = one.work.place.shelf.path(name)
        header = replace(
            self.header(one.work, one.index, one.plan),
            fields=tuple(sorted(record)),
            content=one.work.origin.content,
            part=part,
            parts=parts,
        )
        video = one.work.source.kind == "video"
        metadata = metadata_of(
            self.job.architecture,
            header,
            size=_named_size(one.plan),
            frames=one.plan.length if video else None,
        )
        self.writer.put(lambda: write_record(path, record, self.fields, metadata))
        one.work.place.named.add(name)
        self.summary.encoded += 1

    # small things

    def header(self, work: _Work, index: int, plan: ClipPlan) -> Header:
        """The header of a clip made now, but for its fields, content and sections."""
        wanted = self.job.wanted
        return Header(
            kind="media",
            stem=work.source.stem,
            encoders=dict(wanted.encoders),
            dtypes=dict(self.job.dtypes),
            options=dict(self.job.options),
            schema=wanted.task.schema.version,
            source=work.source.path.name,
            signature=work.origin.signature,
            plan=work.place.settings.plan,
            preprocessing=work.place.settings.preprocessing,
            bucket=plan.bucket,
            start=plan.start,
            length=plan.length,
            clip=index,
            clips=work.clips,
        )

    def name(self, plan: ClipPlan, part: int) -> str:
        """The file name of one section of a clip."""
        video = plan.source.kind == "video"
        return media_name(
            plan.source.stem,
            _named_size(plan),
            self.job.architecture.suffix,
            span=(plan.start, plan.length) if video else None,
            section=part if video and self.sectioned else None,
        )

    def failed(self, work: _Work, error: Exception, name: str | None = None) -> None:
        """Leave a source out, and remember it."""
        if isinstance(error, MemoryError):
            raise RunError(
                f"{work.source.path.name}: the computer's memory is full.",
                fix="Lower --num_workers.",
            ) from error
        self.job.failed(self.summary, name or work.source.path.name, error)
        try:
            signature = work.origin.signature
        except OSError:
            signature = ""
        work.place.failures[work.source.path.name] = Failure(
            reason=self.summary.failed[-1].reason,
            signature=signature,
            plan=work.place.settings.plan,
        )

    def stalled(self, work: Sequence[_Work]) -> None:
        """Name the files that threads have been reading for minutes."""
        names = ", ".join(one.source.path.name for one in work)
        self.job.report.warn(f"Nothing has been read for two minutes; still at: {names}.")

    def finish(self, place: _Place) -> None:
        """Delete leftovers, and remember what failed."""
        shelf = place.shelf
        sweep(shelf.directory)
        if not self.job.keep:
            self.summary.removed += delete_leftovers(
                shelf, shelf.media, place.named, place.failures
            )
        write_failures(shelf.directory, self.job.architecture, "media", place.failures)

    bar: Progress
    writer: WriteBehind
    began: float
    done: int


def _named_size(plan: ClipPlan) -> tuple[int, int]:
    """The size in the file name: an image's own, a video's bucket."""
    return plan.bucket if plan.source.kind == "video" else plan.size


def _shape(clip: Clip) -> Any:
    """Clips that are equal here can be encoded in one call."""
    return (
        clip.frames.shape,
        clip.length,
        tuple(control.shape for control in clip.controls),
        repr(sorted(clip.options.items())),
    )
