"""Which clips of a dataset have to be encoded: those without a fresh record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from musubi.cache.failures import Failure
from musubi.cache.freshness import made_otherwise
from musubi.cache.header import Header
from musubi.cache.job import Job, Summary
from musubi.cache.shelf import Shelf, read_shelf
from musubi.cache.store import media_name, rewrite_header
from musubi.cache.survey import Origin, Settings, judge_media, renew, settings_of
from musubi.cache.threads import read_ahead
from musubi.data import clips as data_clips
from musubi.data.sources import scan
from musubi.errors import RunError

if TYPE_CHECKING:
    from musubi.config.dataset import DatasetEntry
    from musubi.data.clips import ClipPlan
    from musubi.data.sources import Source


@dataclass(kw_only=True)
class Place:
    """One dataset while it is cached."""

    entry: DatasetEntry
    shelf: Shelf
    settings: Settings
    named: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    plans: list[ClipPlan] = field(default_factory=list)


@dataclass(kw_only=True)
class Work:
    """One source that has to be opened."""

    place: Place
    source: Source
    origin: Origin
    plans: list[tuple[int, ClipPlan]] = field(default_factory=list)
    clips: int = 0


class Worklist:
    """Finds what has to be done, and does what needs no encoder: new headers, adoption.

    Args:
        job: The run.
        summary: Where it is counted.
    """

    def __init__(self, job: Job, summary: Summary) -> None:
        self.job = job
        self.summary = summary
        self.fields = job.wanted.task.schema.media
        self.sectioned = job.wanted.task.schema.sectioned

    def survey(self) -> tuple[list[Place], list[Work]]:
        """Set the sources aside whose records are all fresh; the others have to be opened."""
        job = self.job
        places: list[Place] = []
        pending: list[Work] = []
        for entry in job.dataset.datasets:
            shelf = read_shelf(entry.cache_directory, job.architecture, text=False)
            if job.gone(entry):
                self.summary.fresh += len(shelf.media)
                continue
            found = scan(entry)
            settings = settings_of(entry, job.wanted.task)
            place = Place(entry=entry, shelf=shelf, settings=settings)
            places.append(place)
            for skip in found.skipped:
                job.failed(self.summary, skip.path.name, skip.reason)
                place.failures[skip.path.name] = Failure(reason=skip.reason, signature="", plan="")
            for source in found.sources:
                origin = Origin(source.paths)
                verdict = judge_media(source, origin, place.shelf, job.wanted, place.settings)
                if verdict.reason is None:
                    place.named.update(verdict.names)
                    self.summary.fresh += len(verdict.names)
                    if verdict.renewed:
                        renew(place.shelf, verdict.names, origin)
                else:
                    pending.append(Work(place=place, source=source, origin=origin))
        return places, pending

    def plan(self, pending: Sequence[Work]) -> list[Work]:
        """Open the sources: which clips each gives, and which of them have to be encoded."""
        job = self.job
        task = job.wanted.task

        def probe(work: Work) -> Iterable[list[ClipPlan]]:
            return [
                data_clips.plan(work.source, work.place.entry, job.architecture, task, job.options)
            ]

        out: list[Work] = []
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
            rate = job.wanted.task.shape.frame_rate
            for note in data_clips.conversions(place.plans, place.entry, rate):
                job.report.note(note)
        out.sort(key=lambda w: (w.place.entry.index, w.source.path.name))
        return out

    def settled(self, work: Work, index: int, plan: ClipPlan) -> bool:
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

    def adopt(self, work: Work, index: int, plan: ClipPlan) -> bool:
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

    def header(self, work: Work, index: int, plan: ClipPlan) -> Header:
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
            named_size(plan),
            self.job.architecture.suffix,
            span=(plan.start, plan.length) if video else None,
            section=part if video and self.sectioned else None,
        )

    def failed(self, work: Work, error: Exception, name: str | None = None) -> None:
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

    def stalled(self, work: Sequence[Work]) -> None:
        """Name the files that threads have been reading for minutes."""
        names = ", ".join(one.source.path.name for one in work)
        self.job.report.warn(f"Nothing has been read for two minutes; still at: {names}.")


def named_size(plan: ClipPlan) -> tuple[int, int]:
    """The size in the file name: an image's own, a video's bucket."""
    return plan.bucket if plan.source.kind == "video" else plan.size
