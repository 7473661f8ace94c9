"""`musubi cache check`: every file of a dataset, and whether its records are fresh."""

from __future__ import annotations

from collections import Counter

from musubi.cache.freshness import Wanted
from musubi.cache.header import Kind
from musubi.cache.shelf import read_shelf
from musubi.cache.store import text_name
from musubi.cache.survey import NO_RECORD, Origin, judge_media, judge_text, settings_of
from musubi.cache.tasks import choose_task, encoders_of
from musubi.config.cache import CacheCheckConfig
from musubi.config.dataset import read_dataset_config
from musubi.config.options import paths
from musubi.data import check as data_check
from musubi.data.sources import scan
from musubi.spec.architecture import Architecture
from musubi.spec.report import Report
from musubi.weights.identity import identity


def run(config: CacheCheckConfig, architecture: Architecture, report: Report) -> None:
    """Account for every file without a GPU, then say which records are fresh, stale or missing.

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
    task = choose_task(architecture, config.task, files)
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
    dataset = read_dataset_config(config.dataset_config, architecture)
    for number, entry in enumerate(dataset.datasets, start=1):
        if not entry.place.exists():
            continue
        shelf = read_shelf(entry.cache_directory, architecture)
        settings = settings_of(entry, architecture, task)
        media: Counter[str] = Counter()
        text: Counter[str] = Counter()
        for source in scan(entry).sources:
            verdict = judge_media(source, Origin(source), shelf, wanted["media"], settings)
            media[_state(verdict.reason)] += 1
            head = shelf.text.get(text_name(source.stem, architecture.suffix))
            text[_state(judge_text(head, source.caption, wanted["text"]))] += 1
        for what, counts in (("latents", media), ("text", text)):
            rows += [(number, what, state, count) for state, count in counts.most_common()]
    return rows


def _state(reason: str | None) -> str:
    if reason is None:
        return "fresh"
    return "missing" if reason == NO_RECORD else f"stale: {reason}"
