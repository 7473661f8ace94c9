"""`musubi cache check`: every file of a dataset, and whether its records are fresh."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from musubi.cache import foreign
from musubi.cache.freshness import Wanted
from musubi.cache.header import Kind
from musubi.cache.index import CacheIndex, read_index
from musubi.cache.survey import (
    NO_RECORD,
    OTHER_SETTINGS,
    Origin,
    Settings,
    judge_alone,
    judge_media,
    judge_text,
    origin_of_text,
    seen_by_text,
    settings_of,
    text_head,
)
from musubi.cache.tasks import encoders_of, task_of
from musubi.config.cache import CacheCheckConfig
from musubi.config.dataset import read_dataset_config
from musubi.config.options import paths
from musubi.data import check as data_check
from musubi.data.sources import Source, scan
from musubi.plugin.architecture import Architecture
from musubi.plugin.report import Report
from musubi.weights.identity import identity


def run(config: CacheCheckConfig, architecture: Architecture, report: Report) -> None:
    """Check every file, without a GPU, then show which records are fresh, stale or missing.

    Raises:
        MusubiError: The dataset file cannot be used, or gives nothing.
    """
    data_check.run(config, architecture, report)
    rows = record_states(config, architecture)
    report.table("Records", ("dataset", "kind", "state", "files"), rows)


def record_states(
    config: CacheCheckConfig, architecture: Architecture
) -> list[tuple[int, str, str, int]]:
    """Dataset number from 1, "latents" or "text", a state, and how many sources are in it."""
    files = paths(config, architecture)
    task = task_of(config, architecture)
    wanted: dict[Kind, Wanted] = {}
    kinds: tuple[Kind, ...] = ("media", "text")
    for kind in kinds:
        wanted[kind] = Wanted(
            task=task,
            encoders={
                c.name: identity(files[c.name])
                for c in encoders_of(architecture, task, kind)
                if c.name in files
            },
        )
    rows: list[tuple[int, str, str, int]] = []
    dataset = read_dataset_config(config.dataset_config, architecture, task)
    for number, entry in enumerate(dataset.datasets, start=1):
        cache_index = read_index(entry.cache_directory, architecture, whole=True)
        settings = settings_of(entry, task)
        sources = scan(entry).sources if entry.place.exists() else None
        cache_index = foreign.adopt(cache_index, entry, sources, architecture, task)
        if sources is not None:
            found = list(_judged(sources, cache_index, wanted, settings, architecture))
        else:
            found = list(_alone(cache_index, wanted, settings, architecture))
        for place, what in enumerate(("latents", "text")):
            counts = Counter(_state(pair[place]) for pair in found)
            rows += [(number, what, state, count) for state, count in counts.most_common()]
    return rows


def _judged(
    sources: Iterable[Source],
    cache_index: CacheIndex,
    wanted: Mapping[Kind, Wanted],
    settings: Settings,
    architecture: Architecture,
) -> Iterator[tuple[str | None, str | None]]:
    """Why the latents and the text of each source are not fresh."""
    for source in sources:
        media = judge_media(source, Origin(source.paths), cache_index, wanted["media"], settings)
        seen = origin_of_text(seen_by_text(source, wanted["text"].task))
        reasons = (
            judge_text(
                text_head(source.stem, cache_index, architecture, ending),
                text,
                wanted["text"],
                origin=seen,
            )
            for ending, text in source.texts.items()
        )
        yield media.reason, next(filter(None, reasons), None)


def _alone(
    cache_index: CacheIndex,
    wanted: Mapping[Kind, Wanted],
    settings: Settings,
    architecture: Architecture,
) -> Iterator[tuple[str | None, str | None]]:
    """The same for sources that no longer exist and are known only by their records."""
    for stem, names in cache_index.by_stem.items():
        headers = [h.header for name in names if (h := cache_index.media[name]) and h.header]
        reasons = {judge_alone(header, wanted["media"], settings) for header in headers}
        current = reasons - {OTHER_SETTINGS}  # beside what is left over from other settings
        media = next(filter(None, current), None) if current else OTHER_SETTINGS
        yield media, judge_text(text_head(stem, cache_index, architecture), None, wanted["text"])


def _state(reason: str | None) -> str:
    if reason is None:
        return "fresh"
    return "missing" if reason == NO_RECORD else f"stale: {reason}"
