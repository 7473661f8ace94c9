"""The keys that say how often datasets are visited, seen over all datasets of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from musubi.config.dataset_entry import DatasetEntry
from musubi.errors import ConfigError


def check_shares(path: Path, entries: Sequence[DatasetEntry]) -> None:
    """Refuse shares that contradict each other.

    Raises:
        ConfigError: Naming the datasets by number.
    """
    plain = [entry for entry in entries if not entry.is_reg]
    if not plain:
        raise ConfigError(
            f"{path} has nothing but datasets with is_reg: they are beside others.",
            fix="Remove is_reg from the datasets that show what is to be learned.",
        )
    for entry in entries:
        where = f"{path}, [[datasets]] number {entry.index + 1}"
        if entry.reg_ratio != 1.0 and not entry.is_reg:
            raise ConfigError(
                f"{where}: reg_ratio means nothing without is_reg.",
                fix="Give weight instead, or is_reg = true.",
            )
    weighted = [entry for entry in plain if entry.weight is not None]
    if weighted and len(weighted) < len(plain):
        missing = next(entry for entry in plain if entry.weight is None)
        raise ConfigError(
            f"{path}: dataset number {weighted[0].index + 1} has a weight, and number "
            f"{missing.index + 1} has none.",
            fix="Give each dataset a weight, or none.",
        )
