"""Every failure a user can meet: one sentence that says what failed, one that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MusubiError(Exception):
    """Something the user can mend: the file, key and value that failed, then what to write instead.

    Args:
        what: The fact, naming the file, the key and the value.
        fix: What to write or do instead, as an instruction.
    """

    exit_code = 2

    def __init__(self, what: str, *, fix: str | None = None) -> None:
        super().__init__(what if fix is None else f"{what} {fix}")
        self.what = what
        self.fix = fix


class ConfigError(MusubiError):
    """An option, a TOML key or a value that cannot be used."""


class DataError(MusubiError):
    """A dataset, an image, a video, a caption or a cache record that cannot be used."""


class CheckpointError(MusubiError):
    """A weights file that cannot be read, or is not what the option asks for."""


class MissingPackageError(MusubiError):
    """An optional package is needed and absent; `fix` says how to install it."""


class RunError(MusubiError):
    """A run that had to stop: a loss that is not finite, a disk that is full."""


class StoppedError(MusubiError):
    """The user asked to stop; the state is saved and `fix` says how to go on."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing is close.

    >>> nearest("learning_rat", ["learning_rate", "seed"])
    'learning_rate'
    """
    names = list(known)
    folded = {n.lower().replace("-", "_"): n for n in reversed(names)}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """One sentence naming the nearest known name, else all of them.

    >>> did_you_mean("adamv", ["adamw", "lion"])
    "Did you mean 'adamw'?"
    """
    names = list(known)
    close = nearest(name, names)
    if close is not None:
        return f"Did you mean {close!r}?"
    return f"Known: {', '.join(names)}." if names else "None is known here."
