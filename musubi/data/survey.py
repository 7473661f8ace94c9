"""Every clip a dataset file gives, and a reason for every file that gives none: nothing is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from musubi.config.dataset import DatasetEntry, DatasetFile, read_dataset_config
from musubi.config.options import own_options
from musubi.config.task import choose_task
from musubi.data import clips
from musubi.data.clips import ClipPlan
from musubi.data.read_ahead import read_ahead
from musubi.data.sources import Scan, Skipped, Source, scan
from musubi.errors import MusubiError
from musubi.plugin.architecture import Architecture, Task
from musubi.plugin.report import Report

MOST_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """What one dataset gives.

    Args:
        entry: The dataset.
        plans: Its clips, those of one source together.
        used: How many files give clips.
        skipped: Files that give none.
        others: Files that are no images or videos of this dataset.
    """

    entry: DatasetEntry
    plans: list[ClipPlan]
    used: int
    skipped: list[Skipped]
    others: list[Skipped]


def survey_of(
    config: Any,
    architecture: Architecture,
    report: Report,
    *,
    command_line: Mapping[str, Any] | None = None,
) -> tuple[Task, list[Surveyed]]:
    """Read the dataset file of a command, and survey what it names: the task, and each dataset.

    Args:
        config: With `dataset_config`, `task` and `num_workers`.
        architecture: Whose clips.
        report: Gets messages about unusual things in the file, and shows a progress bar.
        command_line: Options that stand in where the file says nothing; None is "not given".

    Raises:
        ConfigError: The dataset file cannot be used.
        DataError: A list of files cannot be read.
    """
    own = own_options(config, architecture)
    task = choose_task(architecture, config.task, options=own).task
    dataset = read_dataset_config(
        config.dataset_config, architecture, task, command_line=command_line
    )
    for note in dataset.notes:
        report.note(note)
    found = survey(
        dataset,
        architecture,
        task,
        workers=config.num_workers,
        report=report,
        options=own,
    )
    return task, found


def survey(
    dataset: DatasetFile,
    architecture: Architecture,
    task: Task,
    *,
    workers: int | None,
    report: Report,
    options: Mapping[str, Any] | None = None,
) -> list[Surveyed]:
    """Open every file of every dataset as far as planning its clips needs.

    A dataset whose files are gone, which is one that has records, is left out with a warning.

    Args:
        dataset: The dataset file.
        architecture: Whose clips.
        task: Of the architecture.
        workers: Threads; all cores but one, at most 8, when None.
        report: Shows a bar, and is told what is gone.
        options: The architecture's own options.

    Raises:
        DataError: A directory or a list of files cannot be read.
    """
    threads = workers or threads_by_default()
    found: list[tuple[DatasetEntry, Scan]] = []
    for entry in dataset.datasets:
        if entry.place.exists():
            found.append((entry, scan(entry)))
        else:
            report.warn(
                f"{entry.place} is gone: its clips are not counted here, and training uses its "
                f"records in {entry.cache_directory} as they are."
            )
    out: list[Surveyed] = []
    total = sum(len(s.sources) for _, s in found)
    with report.progress("Looking at files", total, unit="file") as bar:
        for entry, files in found:

            def planned(source: Source, entry: DatasetEntry = entry) -> Iterator[list[ClipPlan]]:
                yield clips.plan(source, entry, architecture, task, options)

            plans: list[ClipPlan] = []
            skipped = list(files.skipped)
            looked_at = read_ahead(files.sources, planned, workers=threads, ahead=64, in_order=True)
            for source, made in looked_at:
                bar.advance()
                if isinstance(made, MusubiError):
                    reason = " ".join(filter(None, (made.what, made.fix)))
                    skipped.append(Skipped(path=source.path, reason=reason))
                elif isinstance(made, Exception):
                    raise made
                else:
                    plans += made
            out.append(
                Surveyed(
                    entry=entry,
                    plans=plans,
                    used=len({p.source.path for p in plans}),
                    skipped=sorted(skipped, key=lambda s: str(s.path)),
                    others=files.others,
                )
            )
    return out


def threads_by_default() -> int:
    """All cores but one, at least one and at most 8."""
    return max(1, min((os.cpu_count() or 1) - 1, MOST_WORKERS))
