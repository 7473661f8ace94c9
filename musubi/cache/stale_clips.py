"""Finds the clips of a dataset that have no fresh record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from musubi.cache import foreign
from musubi.cache.caching_run import CachingRun, Summary
from musubi.cache.freshness import made_otherwise
from musubi.cache.header import RecordHeader
from musubi.cache.index import CacheIndex, Failure, look_again, read_index
from musubi.cache.store import media_name, rewrite_header
from musubi.cache.survey import Origin, Settings, judge_media, renew, settings_of
from musubi.cache.training_set import Problem
from musubi.data import clips as data_clips
from musubi.data.read_ahead import read_ahead
from musubi.data.sources import scan
from musubi.errors import RunError

if TYPE_CHECKING:
    from musubi.config.dataset import DatasetEntry
    from musubi.data.clips import ClipPlan
    from musubi.data.sources import Source


@dataclass(kw_only=True)
class CachedDataset:
    """One dataset while it is cached."""

    entry: DatasetEntry
    cache_index: CacheIndex
    settings: Settings
    named: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    plans: list[ClipPlan] = field(default_factory=list)


@dataclass(kw_only=True)
class StaleClip:
    """One source with clips to encode.

    Args:
        place: The dataset of the source.
        source: The source.
        origin: The files of the source.
        plans: The clips to encode, each with its number.
        clips: How many clips it gives.
        written: File names of the records that were made.
        problems: Clips that were left out, and why.
    """

    place: CachedDataset
    source: Source
    origin: Origin
    plans: list[tuple[int, ClipPlan]] = field(default_factory=list)
    clips: int = 0
    written: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class StaleClips:
    """Finds the clips to encode; where new headers are enough, it writes them.

    Args:
        caching: The run.
        summary: Counts the results.
    """

    def __init__(self, caching: CachingRun, summary: Summary) -> None:
        self.caching = caching
        self.summary = summary
        self.fields = caching.wanted.task.schema.kept
        self.sectioned = caching.wanted.task.schema.sectioned

    def survey(self) -> tuple[list[CachedDataset], list[StaleClip]]:
        """Find the sources that have records that are missing or stale."""
        caching = self.caching
        places: list[CachedDataset] = []
        pending: list[StaleClip] = []
        for entry in caching.dataset.datasets:
            cache_index = read_index(
                entry.cache_directory, caching.architecture, text=False, whole=True
            )
            if caching.gone(entry):
                self.summary.fresh += len(cache_index.media)
                continue
            found = scan(entry)
            cache_index = foreign.adopt(
                cache_index, entry, found.sources, caching.architecture, caching.wanted.task
            )
            settings = settings_of(entry, caching.wanted.task)
            place = CachedDataset(entry=entry, cache_index=cache_index, settings=settings)
            places.append(place)
            for skip in found.skipped:
                caching.failed(self.summary, skip.path.name, skip.reason)
                place.failures[skip.path.name] = Failure(reason=skip.reason, signature="", plan="")
            for source in found.sources:
                origin = Origin(source.paths)
                verdict = judge_media(
                    source, origin, place.cache_index, caching.wanted, place.settings
                )
                if verdict.reason is None:
                    place.named.update(verdict.names)
                    heads = [place.cache_index.media[name] for name in verdict.names]
                    adopted = sum(1 for h in heads if h and h.header and h.header.adopted)
                    self.summary.adopted += adopted
                    self.summary.fresh += len(verdict.names) - adopted
                    if verdict.renewed:
                        renew(place.cache_index, verdict.names, origin)
                else:
                    pending.append(StaleClip(place=place, source=source, origin=origin))
        return places, pending

    def made_elsewhere(self, pending: Sequence[StaleClip]) -> list[bool]:
        """Which sources have fresh records by now, which another process has made."""
        places = {id(work.place): work.place for work in pending}
        for place in places.values():
            stems = {work.source.stem for work in pending if work.place is place}
            place.cache_index = look_again(place.cache_index, self.caching.architecture, stems)
        made: list[bool] = []
        for work in pending:
            place = work.place
            verdict = judge_media(
                work.source, work.origin, place.cache_index, self.caching.wanted, place.settings
            )
            made.append(verdict.reason is None)
            if verdict.reason is None:
                place.named.update(verdict.names)
                self.summary.encoded += len(verdict.names)
        return made

    def plan(self, pending: Sequence[StaleClip]) -> list[StaleClip]:
        """Open the sources: which clips each gives, and which of them have to be encoded."""
        caching = self.caching
        task = caching.wanted.task

        def probe(work: StaleClip) -> Iterable[list[ClipPlan]]:
            work.origin.begin()
            return [
                data_clips.plan(
                    work.source, work.place.entry, caching.architecture, task, caching.options
                )
            ]

        out: list[StaleClip] = []
        with (
            caching.report.progress("Looking at files", len(pending), unit="file") as bar,
            contextlib.closing(
                read_ahead(pending, probe, workers=caching.workers, ahead=64, stalled=self.stalled)
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
            rate = caching.wanted.task.shape.frame_rate
            for note in data_clips.conversions(place.plans, place.entry, rate):
                caching.report.note(note)
        out.sort(key=lambda w: (w.place.entry.index, w.source.path.name))
        return out

    def settled(self, work: StaleClip, index: int, plan: ClipPlan) -> bool:
        """Whether a clip needs no encoding; gives its records new headers where that is enough."""
        first = self.name(plan, 0)
        head = work.place.cache_index.media.get(first)
        if head is None or head.damaged or head.header is None:
            return False
        parts = [self.name(plan, part) for part in range(head.header.parts)]
        headers = [
            (name, known.header)
            for name in parts
            if (known := work.place.cache_index.media.get(name)) is not None
            and known.header is not None
            and not known.damaged
        ]
        if self.caching.skip_existing and len(headers) == len(parts):
            work.place.named.update(parts)
            self.summary.fresh += len(headers)
            return True
        wanted = self.header(work, index, plan)
        if len(headers) < len(parts) or any(
            header.preprocessing != wanted.preprocessing
            or (header.source, header.bucket) != (wanted.source, wanted.bucket)
            or (header.start, header.length) != (wanted.start, wanted.length)
            or made_otherwise(header, self.caching.wanted, self.fields) is not None
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
                rewrite_header(work.place.cache_index.path(name), renewed)
                self.summary.renewed += 1
            else:
                self.summary.fresh += 1
            work.place.named.add(name)
        return True

    def again(self, work: StaleClip) -> StaleClip:
        """Start a source again, after its files have changed; its new records are deleted."""
        for name in work.written:
            work.place.cache_index.path(name).unlink(missing_ok=True)
            work.place.named.discard(name)
        self.summary.encoded -= len(work.written)
        work.place.failures.pop(work.source.path.name, None)
        self.summary.failed = [p for p in self.summary.failed if p not in work.problems]
        return StaleClip(place=work.place, source=work.source, origin=Origin(work.source.paths))

    def header(self, work: StaleClip, index: int, plan: ClipPlan) -> RecordHeader:
        """The header of a clip made now, but for its fields, content and sections."""
        wanted = self.caching.wanted
        return RecordHeader(
            kind="media",
            stem=work.source.stem,
            encoders=dict(wanted.encoders),
            dtypes=dict(self.caching.dtypes),
            options=dict(self.caching.options),
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
            named_size(plan),
            self.caching.architecture.suffix,
            span=(plan.start, plan.length) if video else None,
            section=part if video and self.sectioned else None,
        )

    def failed(self, work: StaleClip, error: Exception, name: str | None = None) -> None:
        """Leave a source out, and record the failure."""
        if isinstance(error, MemoryError):
            raise RunError(
                f"{work.source.path.name}: the computer's memory is full.",
                fix="Lower --num_workers.",
            ) from error
        self.caching.failed(self.summary, name or work.source.path.name, error)
        work.problems.append(self.summary.failed[-1])
        try:
            signature = work.origin.signature
        except OSError:
            signature = ""
        work.place.failures[work.source.path.name] = Failure(
            reason=self.summary.failed[-1].reason,
            signature=signature,
            plan=work.place.settings.plan,
        )

    def stalled(self, work: Sequence[StaleClip]) -> None:
        """Show the files that threads have been reading for minutes."""
        names = ", ".join(one.source.path.name for one in work)
        self.caching.report.warn(f"Nothing has been read for two minutes; still at: {names}.")


def named_size(plan: ClipPlan) -> tuple[int, int]:
    """The size in the file name: an image's own, a video's bucket."""
    return plan.bucket if plan.source.kind == "video" else plan.size
