"""The video sizes of a dataset file: of its clips, or of its records if the sources are gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from musubi.cache import foreign
from musubi.cache.index import read_index
from musubi.cache.survey import settings_of
from musubi.config.dataset import DatasetEntry, DatasetFile, read_dataset_config
from musubi.config.options import Options, own_options
from musubi.data.survey import survey
from musubi.errors import ConfigError, counted
from musubi.plugin import Architecture, Report, Task


@dataclass(frozen=True, order=True)
class Bucket:
    """Clips of one size: pixels, frames, and how many make a batch."""

    width: int
    height: int
    frames: int
    batch: int = 1

    def __str__(self) -> str:
        size = f"{self.width}x{self.height}"
        shown = f"{size}, {self.frames} frames" if self.frames > 1 else size
        return f"{shown}, batch {self.batch}" if self.batch > 1 else shown


# Width, height and frames of a clip.
Size = tuple[int, int, int]


def of_dataset(
    config: Options, architecture: Architecture, task: Task, path: Path, report: Report
) -> tuple[Bucket, ...]:
    """Every size of a dataset file, with its largest batch.

    A dataset whose sources are gone has the sizes of its records, as training uses them.

    Args:
        config: With the architecture's own options.
        architecture: Whose clips.
        task: Of the architecture.
        path: The dataset file.
        report: Shows the survey of the dataset, and what is missing.

    Raises:
        ConfigError: There is no clip.
        DataError: A directory or a list of files cannot be read.
    """
    file = read_dataset_config(path, architecture, task)
    made: dict[Bucket, None] = {}
    for entry, counts in _counted(config, architecture, task, file, report):
        for (width, height, frames), count in counts.items():
            batch = min(entry.batch_size, count * entry.num_repeats)
            made[Bucket(width, height, max(1, frames), batch)] = None
    if not made:
        raise ConfigError(
            f"{path} gives no clip to plan for.", fix="`musubi cache check` says why."
        )
    return tuple(made)


def _counted(
    config: Options, architecture: Architecture, task: Task, file: DatasetFile, report: Report
) -> Iterator[tuple[DatasetEntry, Counter[Size]]]:
    there = [entry for entry in file.datasets if entry.place.exists()]
    for one in survey(
        replace(file, datasets=tuple(there)),
        architecture,
        task,
        workers=None,
        report=report,
        options=own_options(config, architecture),
    ):
        yield one.entry, Counter((*plan.bucket, len(plan.frames)) for plan in one.plans)
    for entry in file.datasets:
        if entry not in there:
            found = _recorded(entry, architecture, task)
            report.note(
                f"{entry.place} is gone: the sizes of {counted(found.total(), 'record')} in "
                f"{entry.cache_directory} are planned for."
            )
            yield entry, found


def _recorded(entry: DatasetEntry, architecture: Architecture, task: Task) -> Counter[Size]:
    """Sizes of the records that were made with the settings of the dataset file."""
    cache_index = read_index(entry.cache_directory, architecture, text=False)
    cache_index = foreign.adopt(cache_index, entry, None, architecture, task)
    plan = settings_of(entry, task).plan
    headers = (head.header for head in cache_index.media.values() if head is not None)
    return Counter((*h.bucket, h.length) for h in headers if h is not None and h.plan == plan)
