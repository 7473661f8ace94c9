"""Sources that could not be cached, remembered beside their records, so that training need not wait for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from musubi.plugin.architecture import Architecture
from musubi.weights.write import atomic


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One source that gave no record.

    Args:
        reason: A sentence or phrase.
        signature: Of the source when it was tried.
        plan: Digest of the settings it was tried with.
    """

    reason: str
    signature: str
    plan: str


def _path(directory: Path, architecture: Architecture, kind: str) -> Path:
    return directory / f".musubi-failed-{kind}.{architecture.suffix}.json"


def read_failures(directory: Path, architecture: Architecture, kind: str) -> dict[str, Failure]:
    """Source base name to why it failed; empty when nothing did.

    Args:
        directory: The cache directory.
        architecture: Whose records.
        kind: "media" or "text".
    """
    try:
        text = _path(directory, architecture, kind).read_text(encoding="utf-8")
        return {name: Failure(**values) for name, values in json.loads(text).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # a memory aid: absent is as good
        return {}


def write_failures(
    directory: Path, architecture: Architecture, kind: str, failures: Mapping[str, Failure]
) -> None:
    """Remember the failures of a whole run over a dataset; nothing is left when there are none."""
    path = _path(directory, architecture, kind)
    if not failures:
        path.unlink(missing_ok=True)
        return
    values = {name: asdict(failures[name]) for name in sorted(failures)}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")
