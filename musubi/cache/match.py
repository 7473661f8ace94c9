"""Make the training set of a dataset file: find the record of each source."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi.cache import foreign
from musubi.cache.caching_run import Told, listed
from musubi.cache.freshness import Wanted, cache_options, odd_ones, text_digest
from musubi.cache.header import Kind, RecordHeader
from musubi.cache.index import CacheIndex, collector_off, read_failures, read_index
from musubi.cache.store import Stored, text_name
from musubi.cache.survey import (
    OTHER_SETTINGS,
    Origin,
    judge_alone,
    judge_media,
    judge_text,
    origin_of_text,
    renew,
    seen_by_text,
    settings_of,
    text_head,
)
from musubi.cache.tasks import encoders_of
from musubi.cache.text import NO_PLAN
from musubi.cache.training_set import Problem, TrainingItem, TrainingSet, by_reason
from musubi.data.sources import scan
from musubi.errors import DataError, counted
from musubi.plugin.architecture import Architecture, Task
from musubi.plugin.report import Report
from musubi.weights.identity import identity

if TYPE_CHECKING:
    from musubi.config.dataset import DatasetEntry, DatasetFile

__all__ = ["Problem", "TrainingItem", "TrainingSet", "open_training_set"]


def open_training_set(  # noqa: PLR0913 - each is another thing known of the run
    dataset: DatasetFile,
    architecture: Architecture,
    task: Task,
    *,
    report: Report,
    encoders: Mapping[str, Path] | None = None,
    options: Mapping[str, Any] | None = None,
    partial: bool = False,
    pin: bool = False,
    told: Told = frozenset(),
) -> TrainingSet:
    """Match the sources of a dataset file with their records.

    Args:
        dataset: The dataset file, resolved.
        architecture: Whose records to use.
        task: The task to train; its records must hold the fields of its schema.
        report: Gets one message about what is left out, and why.
        encoders: Component name to its weights file, where known: records of another file are stale.
        options: The architecture's own options, where known, compared in the same way.
        partial: Go on without the sources whose records are missing or stale.
        pin: Hand out batches in pinned memory.
        told: Left-out files that were already shown.

    Raises:
        DataError: Records are missing or stale, or nothing is left to train on: with the reasons and
            the command to run.
    """
    wanted = Wanted(
        task=task,
        encoders={name: identity(path) for name, path in (encoders or {}).items()},
        options=cache_options(architecture, options or {}, "train"),
    )
    opening = _Opening(architecture, wanted, report)
    with collector_off():
        for entry in dataset.datasets:
            opening.open(entry)
        opening.agree()
    found = TrainingSet(
        architecture=architecture,
        task=task,
        items=[row.item for row in opening.rows],
        caches=tuple(entry.cache_directory for entry in dataset.datasets),
        missing=tuple(opening.missing),
        stale=tuple(opening.stale),
        skipped=tuple(opening.skipped),
        pin=pin,
    )
    adopted = {row.item.media_path for row in opening.rows if row.media.adopted}
    adopted |= {row.item.text_path for row in opening.rows if row.text.adopted}
    if adopted:
        report.note(foreign.said(len(adopted)))
    if news := [p for p in found.skipped if (p.name, p.reason) not in told]:
        reasons = "; ".join(f"{n} × {reason}" for reason, n in by_reason(news).items())
        report.warn(f"{counted(len(news), 'file')} left out: {reasons}")
    if found.missing or found.stale or not found.items:
        error = incomplete(found, dataset.path)
        if not partial or not found.items:
            raise error
        report.warn(str(error))
    return found


def incomplete(found: TrainingSet, path: Path) -> DataError:
    """The error for a training set with missing or stale records: the reasons, and what to run.

    Args:
        found: The training set.
        path: The dataset file.
    """
    problems = [*found.missing, *found.stale]
    if not problems:
        return DataError(
            f"{path} gives nothing to train on. {listed(found.skipped)}".rstrip(),
            fix="`musubi cache check` accounts for every file.",
        )
    what = (
        f"Of the sources that {path} names, {len(found.missing)} have no record and "
        f"{len(found.stale)} a stale one: {listed(problems)}"
    )
    commands: list[str] = []
    flags: list[str] = []
    kinds: tuple[tuple[Kind, str], ...] = (("media", "latents"), ("text", "text"))
    for kind, command in kinds:
        if not any(p.what == command for p in problems):
            continue
        names = [c.name for c in encoders_of(found.architecture, found.task, kind)]
        flags += [f"--{name}" for name in names]
        words = " ".join(f"--{name} PATH" for name in names)
        commands.append(
            f"`musubi cache {command} --arch {found.architecture.name} --dataset_config {path} "
            f"{words}`"
        )
    return DataError(
        what,
        fix=f"Run {' and '.join(commands)}, or give `musubi train` {' and '.join(flags)} so that it "
        "makes them itself.",
    )


@dataclass(frozen=True)
class _Row:
    """An item and the headers of its records."""

    item: TrainingItem
    media: RecordHeader
    text: RecordHeader


@dataclass
class _Opening:
    """Builds a training set."""

    architecture: Architecture
    wanted: Wanted
    report: Report
    rows: list[_Row] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    stale: list[Problem] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)

    def open(self, entry: DatasetEntry) -> None:
        """Add one dataset."""
        cache_index = read_index(entry.cache_directory, self.architecture)
        if not entry.place.exists():
            self.without_sources(entry, cache_index)
            return
        found = scan(entry)
        cache_index = foreign.adopt(
            cache_index, entry, found.sources, self.architecture, self.wanted.task
        )
        self.skipped += [
            Problem(name=s.path.name, what="source", reason=s.reason) for s in found.skipped
        ]
        settings = settings_of(entry, self.wanted.task)
        failures = {
            kind: read_failures(entry.cache_directory, self.architecture, kind)
            for kind in ("media", "text")
        }
        media = self.wanted.only(self.names("media"))
        text = self.wanted.only(self.names("text"))
        for source in sorted(found.sources, key=lambda s: s.path.name):
            name = source.path.name
            origin = Origin(source.paths)
            verdict = judge_media(source, origin, cache_index, media, settings)
            if verdict.reason is not None:
                known = failures["media"].get(name)
                if known and (known.signature, known.plan) == (origin.signature, settings.plan):
                    self.skipped.append(Problem(name=name, what="source", reason=known.reason))
                else:
                    self.left_out(name, "latents", verdict.reason, found=verdict.found)
                continue
            if verdict.renewed:
                renew(cache_index, verdict.names, origin)
            seen = origin_of_text(seen_by_text(source, text.task))
            heads = {
                e: text_head(source.stem, cache_index, self.architecture, e) for e in source.texts
            }
            reasons = (
                judge_text(heads[e], said, text, origin=seen) for e, said in source.texts.items()
            )
            reason = next(filter(None, reasons), None)
            if reason is not None:
                known = failures["text"].get(name)
                tried = {(text_digest(said), NO_PLAN) for said in source.texts.values()}
                if known and (known.signature, known.plan) in tried:
                    self.skipped.append(Problem(name=name, what="source", reason=known.reason))
                else:
                    self.left_out(name, "text", reason, found=heads[""] is not None)
                continue
            self.add(entry, cache_index, verdict.names, heads[""], source.texts)

    def without_sources(self, entry: DatasetEntry, cache_index: CacheIndex) -> None:
        """Use the records of a dataset whose images or videos are no longer there."""
        cache_index = foreign.adopt(cache_index, entry, None, self.architecture, self.wanted.task)
        settings = settings_of(entry, self.wanted.task)
        media = self.wanted.only(self.names("media"))
        text = self.wanted.only(self.names("text"))
        used = 0
        for name, head in cache_index.media.items():
            header = None if head is None else head.header
            if header is None:
                continue
            text_record = text_head(header.stem, cache_index, self.architecture)
            what, reason = "latents", judge_alone(header, media, settings)
            if reason == OTHER_SETTINGS:  # left over from before the dataset file was changed
                continue
            if reason is None:
                what, reason = "text", judge_text(text_record, None, text)
            if reason is not None:
                self.left_out(header.source or name, what, reason, found=True)
                continue
            used += 1
            self.add(entry, cache_index, (name,), text_record)
        self.report.warn(
            f"{entry.place} is gone. Of it {counted(used, 'record')} in {entry.cache_directory} "
            f"{'is' if used == 1 else 'are'} used."
        )

    def add(
        self,
        entry: DatasetEntry,
        cache_index: CacheIndex,
        names: Iterable[str],
        text: Stored | None,
        endings: Collection[str] = ("",),
    ) -> None:
        """Add the items of one source; `endings` tell its text records apart."""
        assert text is not None and text.header is not None
        for name in names:
            head = cache_index.media[name]
            assert head is not None and head.header is not None
            header = head.header
            shapes = tuple(
                head.shapes[f.name]
                for f in self.wanted.task.schema.kept
                if not f.varlen and f.name in head.shapes
            )
            item = TrainingItem(
                key=f"{entry.index}/{name}",
                directory=cache_index.directory,
                media_name=name,
                texts={e: text_name(header.stem, self.architecture.suffix, e) for e in endings},
                regularization=entry.is_reg,
                bucket=(*header.bucket, header.length, *shapes),
                batch_size=entry.batch_size,
                repeats=entry.num_repeats,
                dataset=entry.index,
                source=f"{entry.index}/{header.stem}",
                name=_named(header, video=entry.kind == "video"),
            )
            self.rows.append(_Row(item, header, text.header))

    def agree(self) -> None:
        """Remove records that were made differently from most."""
        odd: dict[int, tuple[str, str]] = {}
        for what, headers in (
            ("latents", [row.media for row in self.rows]),
            ("text", [row.text for row in self.rows]),
        ):
            for i, reason in odd_ones(headers).items():
                odd.setdefault(i, (what, reason))
        for i, (what, reason) in odd.items():
            self.left_out(self.rows[i].item.name, what, reason, found=True)
        self.rows = [row for i, row in enumerate(self.rows) if i not in odd]

    def names(self, kind: Kind) -> Sequence[str]:
        """The encoders that make one kind of record."""
        return [c.name for c in encoders_of(self.architecture, self.wanted.task, kind)]

    def left_out(self, name: str, what: str, reason: str, *, found: bool) -> None:
        """Count a source whose record cannot be used."""
        problem = Problem(name=name, what=what, reason=reason)
        (self.stale if found else self.missing).append(problem)


def _named(header: RecordHeader, *, video: bool) -> str:
    if not video:
        return header.source
    section = f", section {header.part + 1}" if header.parts > 1 else ""
    return f"{header.source} (frames {header.start} to {header.start + header.length - 1}{section})"
