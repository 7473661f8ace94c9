"""From a dataset file to its training set: the sources say what is trained on, the records must match."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi.cache.training_set import Item, Problem, TrainingSet
from musubi.spec.architecture import Architecture, Task
from musubi.spec.report import Report

if TYPE_CHECKING:
    from musubi.config.dataset import DatasetFile

__all__ = ["Item", "Problem", "TrainingSet", "open_training_set"]


def open_training_set(
    dataset: DatasetFile,
    architecture: Architecture,
    task: Task,
    *,
    report: Report,
    encoders: Mapping[str, Path] | None = None,
    options: Mapping[str, Any] | None = None,
    pin: bool = False,
) -> TrainingSet:
    """Match the sources of a dataset file with their records.

    Args:
        dataset: The dataset file, resolved.
        architecture: Whose records to use.
        task: The task to train; its records must hold the fields of its schema.
        report: Told once what is left out and which command mends it.
        encoders: Component name to its weights file, where known: records of another file are stale.
        options: The architecture's own options, where known, compared in the same way.
        pin: Hand out batches in pinned memory.

    Raises:
        DataError: Nothing is left to train on, with the reasons and the command to run.
    """
