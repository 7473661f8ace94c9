"""The columns of `metrics.jsonl`: one line a step, one a validation; written by the trainer, read here.

What is learned is the same in equal runs. What is measured (`MEASURED`) is not: a comparison of two
runs, or of a run with its resumed twin, leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi.untrusted import parse_json


@dataclass(frozen=True)
class Column:
    """One key of a line.

    Args:
        key: The key in the file.
        title: For a person.
        unit: Unit of the numbers; empty if they have none.
        measured: Whether it depends on the machine and the moment.
    """

    key: str
    title: str
    unit: str = ""
    measured: bool = False


LOSS = Column("loss/current", "Loss")
AVERAGE = Column("loss/average", "Loss, mean of an epoch")
VALIDATION = Column("loss/validation", "Validation loss")
VALIDATION_ERROR = Column("loss/validation_error", "Standard error of the validation loss")
RATE = Column("lr/unet", "Learning rate")
ADAPTED_RATE = Column("lr/d*lr", "Learning rate that the optimizer found")
GRADIENT = Column("grad_norm", "Gradient norm")
TOKENS = Column("tokens", "Tokens of a step")
SECONDS = Column("seconds", "Seconds a step", "s", measured=True)
DEVICE_MEMORY = Column("memory/device", "Device memory, highest so far", "GiB", measured=True)
HOST_MEMORY = Column("memory/host", "Host memory", "GiB", measured=True)

COLUMNS = (
    LOSS,
    AVERAGE,
    VALIDATION,
    VALIDATION_ERROR,
    RATE,
    ADAPTED_RATE,
    GRADIENT,
    TOKENS,
    SECONDS,
    DEVICE_MEMORY,
    HOST_MEMORY,
)
MEASURED = frozenset(c.key for c in COLUMNS if c.measured)


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a metrics file; none when there is no file.

    The last line of a run that was killed may be cut short; it is left out.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    return list(_whole(lines))


def learned(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries without what was measured: equal in equal runs."""
    return [{k: v for k, v in entry.items() if k not in MEASURED} for entry in entries]


def _whole(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            yield entry
