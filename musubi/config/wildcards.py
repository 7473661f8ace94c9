"""Paths with wildcards, for shells that leave them to the program, as those of Windows do."""

from __future__ import annotations

import os
from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path

from musubi.errors import ConfigError
from musubi.untrusted import value_fault

PATHS = frozenset({"PATH", "FOLDER"})
"""What stands for the values of options that are paths."""


def expanded(values: Iterable[object], name: str) -> list[object]:
    """The paths that are meant: a wildcard becomes what matches it, sorted by name.

    Args:
        values: As written. A path that exists is itself, whatever letters it has.
        name: The option, as messages call it.

    Raises:
        ConfigError: Nothing matches one of them.
    """
    found: list[object] = []
    for value in values:
        if not isinstance(value, str) or not has_magic(value) or value_fault(value) is not None:
            found.append(value)
            continue
        pattern = str(Path(value).expanduser()) if value.startswith("~") else value
        if os.path.lexists(pattern):
            found.append(value)
            continue
        matching = sorted(glob(pattern))  # noqa: PTH207 - the pattern may be absolute
        if not matching:
            raise ConfigError(
                f"{name}: nothing matches {value!r}.", fix="Check the folder and the wildcard."
            )
        found += matching
    return found
