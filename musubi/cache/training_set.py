"""The training set: which records are trained on, and batches of them on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from musubi.cache.batch import CLASS_CAPTIONS, HAS_CLASS, REGULARIZATION, Batch, batch_of
from musubi.cache.store import empty_caption_name, read_record
from musubi.data.batches import dataset_digest
from musubi.data.source import class_ending
from musubi.errors import DataError
from musubi.plugin.architecture import Architecture, Task
from musubi.plugin.record import Field, declared, lacking
from musubi.plugin.runtime import Record


@dataclass(frozen=True, kw_only=True)
class TrainingItem:
    """One thing to train on: a media record and its text record.

    Args:
        key: Unique in the training set and the same on every computer: dataset number and file
            name.
        directory: The directory of both records.
        media_name: File name of the media record.
        texts: File names of the text records by what tells its captions apart: see `Source.texts`.
        regularization: Whether this is a regularization item, which shows what the model should
            keep.
        bucket: Items of one dataset with equal buckets can be stacked: width, height and frames in
            pixels, then the shapes of the tensors.
        batch_size: Batch size of the dataset.
        repeats: How often an epoch visits it.
        dataset: Number of its dataset in the dataset file, from 0.
        source: Name of the source; clips of one video share it.
        name: For messages: the source file, and where in it.
    """

    key: str
    directory: Path
    media_name: str
    texts: Mapping[str, str]
    bucket: tuple[Any, ...]
    batch_size: int
    repeats: int
    dataset: int
    source: str
    name: str
    regularization: bool = False

    @property
    def media_path(self) -> Path:
        """The media record."""
        return self.directory / self.media_name

    @property
    def text_path(self) -> Path:
        """The text record of its first caption."""
        return self.directory / self.texts[""]

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """The ending after the stem of each caption that training draws from."""
        return tuple(ending for ending in self.texts if not ending.endswith("c"))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A source that is left out, and its one reason.

    Args:
        name: The source file, and where in it.
        what: "latents" or "text", for a record that is absent or stale; "source" for a file that
            cannot be used.
        reason: A phrase, such as "another vae file".
    """

    name: str
    what: str
    reason: str


@dataclass(frozen=True)
class TrainingSet:
    """The training items of a dataset file.

    Args:
        architecture: The architecture of the records.
        task: The task; its schema says which fields are loaded.
        items: In an order that depends on names only.
        caches: The cache directory of each dataset.
        missing: Sources without a record.
        stale: Sources whose record was made from something else.
        skipped: Sources that cannot be used.
        pin: Put batches in pinned memory.
        of_class: Batches also hold the captions with the class word.
    """

    architecture: Architecture
    task: Task
    items: list[TrainingItem]
    caches: tuple[Path, ...] = ()
    missing: tuple[Problem, ...] = ()
    stale: tuple[Problem, ...] = ()
    skipped: tuple[Problem, ...] = ()
    pin: bool = False
    of_class: bool = False

    @cached_property
    def digest(self) -> str:
        """Digest of everything that the order of batches depends on: names, buckets, repeats, batch sizes."""
        return dataset_digest(self.items)

    def load(
        self,
        indices: Sequence[int],
        *,
        without_caption: Sequence[bool] | None = None,
        draws: Sequence[int] | None = None,
    ) -> Batch:
        """A batch for `Runtime.condition`, on the CPU, in the dtypes that the records hold.

        Args:
            indices: Into `items`; all of one dataset and one bucket.
            without_caption: For each index, whether the empty caption takes its caption's place.
            draws: For each index a large number, which chooses among its captions; None: the first.

        Returns:
            See `musubi.cache.batch.Batch`.

        Raises:
            DataError: A record cannot be read, lacks a field, or its shape differs from the others'.
        """
        drop = without_caption or [False] * len(indices)
        schema, items = self.task.schema, [self.items[i] for i in indices]
        chosen = [
            item.captions[draw % len(item.captions)]
            for item, draw in zip(items, draws or [0] * len(items), strict=True)
        ]
        records = [
            {
                **_read(item.media_path, schema.kept),
                **(self.empty_text(item.dataset) if dropped else self._text(item, ending)),
            }
            for item, ending, dropped in zip(items, chosen, drop, strict=True)
        ]
        names = [item.name for item in items]
        batch = batch_of(records, schema, names, place=self._placed)
        if items[0].regularization:  # all are: a batch is of one dataset
            batch[REGULARIZATION] = True
        elif self.of_class:
            batch |= self._class_captions(items, chosen)
        return batch

    def _class_captions(self, items: Sequence[TrainingItem], chosen: Sequence[str]) -> Batch:
        """The text fields of the captions with the class word, and which items have one."""
        endings = [class_ending(ending) for ending in chosen]
        known = [ending in item.texts for item, ending in zip(items, endings, strict=True)]
        if not any(known):
            return {}
        records = [
            self._text(item, of_class if has else own)
            for item, of_class, own, has in zip(items, endings, chosen, known, strict=True)
        ]
        names = [item.name for item in items]
        found = batch_of(records, self.task.schema, names, place=self._placed)
        return {CLASS_CAPTIONS: found, HAS_CLASS: known}

    def _text(self, item: TrainingItem, ending: str) -> Record:
        return _read(item.directory / item.texts[ending], self.task.schema.text)

    def empty_text(self, dataset: int) -> Record:
        """The record of the empty caption, by field name, without a batch axis.

        Raises:
            DataError: The dataset's cache directory holds none.
        """
        path = self.caches[dataset] / empty_caption_name(self.architecture.suffix)
        known = self._empty.get(path)
        if known is None:
            known = self._empty[path] = _read(path, self.task.schema.text)
        return dict(known)

    @cached_property
    def _empty(self) -> dict[Path, Record]:
        return {}

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self.pin and torch.cuda.is_available() else tensor


def _read(path: Path, fields: Sequence[Field]) -> Record:
    record, _ = read_record(path, lambda name: declared(fields, name) is not None)
    absent = lacking(fields, record)
    if absent:
        raise DataError(
            f"The record {str(path)!r} lacks {absent[0]!r}, which the task needs.",
            fix="Cache the dataset again for this task.",
        )
    return record


def by_reason(problems: Sequence[Problem]) -> Mapping[str, int]:
    """Reason to how many sources have it, most frequent first."""
    counts: dict[str, int] = {}
    for problem in problems:
        counts[problem.reason] = counts.get(problem.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))
