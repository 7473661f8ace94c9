"""The records of a run: missing ones are cached; all are opened, split and put in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from musubi.cache.encode import ensure
from musubi.cache.index import as_cached
from musubi.cache.match import TrainingSet, open_training_set
from musubi.config.dataset import DatasetFile, read_dataset_config
from musubi.config.options import own_options, paths, tokenizers
from musubi.config.train import TrainConfig
from musubi.data.batches import epoch_order, visits_of
from musubi.errors import ConfigError, DataError
from musubi.plugin import Architecture, Report, Task
from musubi.train.loader import split


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The training data of a run.

    Args:
        file: The dataset file, with all defaults filled in.
        records: The training set, held-back items included.
        training: Indices of the items that are trained on.
        held: Indices of those that are held back.
        digest: Digest of everything that the order of batches depends on.
        shares: Number of a dataset → how often its items are used in an epoch, if that does not
            follow from the repeats alone.
    """

    file: DatasetFile
    records: TrainingSet
    training: Sequence[int]
    held: Sequence[int]
    digest: str
    shares: Mapping[int, int] = field(default_factory=dict)

    def batches(self, seed: int) -> Callable[[int], list[list[int]]]:
        """A function from an epoch (from 1) to its batches. They depend only on the seed, the epoch
        and the data.
        """
        items = [self.records.items[i] for i in self.training]

        def of(epoch: int) -> list[list[int]]:
            order = epoch_order(
                items, seed=seed, epoch=epoch, digest=self.digest, visits=self.shares
            )
            return [[self.training[i] for i in batch] for batch in order]

        return of

    @property
    def visits(self) -> int:
        """Items in an epoch, counting repeats."""
        items = [self.records.items[i] for i in self.training]
        plain = sum(item.repeats for item in items if item.dataset not in self.shares)
        return plain + sum(self.shares.values())


def prepare(
    config: TrainConfig,
    architecture: Architecture,
    task: Task,
    *,
    report: Report,
    pin: bool,
    device: Any = None,
) -> Dataset:
    """Cache missing records, if the files of the encoders are given, and open all records.

    Raises:
        ConfigError: There is no dataset file.
        DataError: Nothing is left to train on, or the empty caption's record is missing.
    """
    if config.dataset_config is None:
        raise ConfigError("Training needs a dataset file.", fix="Give --dataset_config data.toml.")
    file = read_dataset_config(Path(config.dataset_config), architecture, task)
    for note in file.notes:
        report.note(note)
    check_data(config, file)
    files = paths(config, architecture)
    encoders = {n: p for n, p in files.items() if n in task.components}
    places = [entry.cache_directory for entry in file.datasets]
    options = as_cached(places, architecture, own_options(config, architecture))
    told = ensure(
        file,
        architecture,
        task,
        files=encoders,
        report=report,
        options=options,
        tokenizers=tokenizers(config, architecture),
        device=device,
    )
    records = open_training_set(
        file,
        architecture,
        task,
        report=report,
        encoders=encoders,
        options=options,
        pin=pin,
        told=told,
    )
    return divide(replace(records, of_class=config.diff_output_preservation), file, config)


def check_data(config: TrainConfig, file: DatasetFile) -> None:
    """Refuse options that have no effect with this dataset file.

    Raises:
        ConfigError: Naming the option.
    """
    # The lines of a JSONL file may name masks.
    masked = any(entry.masked or entry.jsonl_file for entry in file.datasets)
    if config.unmasked_weight is not None and not masked:
        raise ConfigError(
            f"--unmasked_weight means nothing: no dataset of {file.path} has masks.",
            fix="Give mask_directory or alpha_mask in the dataset file, or leave it out.",
        )
    regularized = any(entry.is_reg for entry in file.datasets)
    for name in ("prior_preservation", "prior_loss_weight"):
        if getattr(config, name) not in (None, False) and not regularized:
            raise ConfigError(
                f"--{name} means nothing: no dataset of {file.path} has is_reg = true.",
                fix="Add a dataset with is_reg = true, or leave it out.",
            )
    if config.diff_output_preservation and not any(e.rules.instead for e in file.datasets):
        raise ConfigError(
            f"--diff_output_preservation means nothing: no dataset of {file.path} has a class_word.",
            fix="Give trigger_word and class_word in the dataset file, or leave it out.",
        )


def divide(records: TrainingSet, file: DatasetFile, config: TrainConfig) -> Dataset:
    """Hold items back for validation, and check what caption dropout needs."""
    keys = [_key(item.text_path, item.dataset) for item in records.items]
    training, held = split(keys, config.validation_split)
    if config.validation_split and not held:
        raise DataError(
            f"--validation_split {config.validation_split:g} would hold back everything there is.",
            fix="Add items, or leave it out.",
        )
    if config.caption_dropout_rate:
        for dataset in sorted({item.dataset for item in records.items}):
            records.empty_text(dataset)
    digest = records.digest + (f"/{config.validation_split:g}" if held else "")
    shares = visits_of([records.items[i] for i in training], file.datasets)
    digest += f"/{sorted(shares.items())}" if shares else ""
    return Dataset(
        file=file, records=records, training=training, held=held, digest=digest, shares=shares
    )


def summary(dataset: Dataset, steps_per_epoch: int) -> Mapping[str, object]:
    """Figures for the table that is shown before the first step."""
    return {
        "items": len(dataset.training),
        "items held back": len(dataset.held),
        "items an epoch, repeats counted": dataset.visits,
        "steps an epoch": steps_per_epoch,
    }


def _key(text: Path, dataset: int) -> str:
    """All clips of one video share a text record, so they are held back or trained on together."""
    return f"{dataset}/{text.name}"
