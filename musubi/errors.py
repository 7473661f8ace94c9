"""Every failure a user can meet: one sentence that says what failed, one that says what to do."""

from __future__ import annotations

import difflib
import errno
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
    """A signal asked to stop; the state is saved, and `fix` is the line that goes on."""

    exit_code = 130


def line_of(error: Exception) -> str:
    """An exception of a library as one line: its kind, and the beginning of what it says.

    >>> line_of(ValueError("a"))
    'ValueError: a'
    """
    first = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__


def counted(number: int, noun: str, several: str | None = None) -> str:
    """A number with its noun, in the singular or the plural.

    Args:
        number: How many.
        noun: Of one.
        several: Of several, where an s is not enough.

    >>> counted(1, "file"), counted(3, "batch", "batches"), counted(0, "clip")
    ('1 file', '3 batches', '0 clips')
    """
    return f"{number} {noun if number == 1 else several or noun + 's'}"


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


# errno → why a file could not be read or written, as the end of a sentence; what to do about it.
_SYSTEM: dict[str, tuple[str, str]] = {
    "ENOSPC": ("the disk is full", "Free some space, or use another disk."),
    "EDQUOT": (
        "your quota of this disk is used up",
        "Delete files of yours there, ask for a larger quota, or use another disk.",
    ),
    "EFBIG": (
        "the file would be larger than the file system or this shell allows",
        "Use a disk with another file system (FAT ends at 4 GiB), or raise the limit with `ulimit -f`.",
    ),
    "EMFILE": (
        "this process has as many files open as it may",
        "Raise the limit with `ulimit -n 4096`, or lower the number of workers.",
    ),
    "ENFILE": (
        "the computer has as many files open as it may",
        "Close other programs, then try again.",
    ),
    "EROFS": ("the disk can only be read", "Use another folder, or mount the disk for writing."),
    "EACCES": ("permission is denied", "Check who may use the file and its folder."),
    "EPERM": ("the system does not allow it", "Check who may use the file and its folder."),
    "ENOENT": (
        "it does not exist, or its folder is gone",
        "Check the path, and whether something deleted the folder meanwhile.",
    ),
    "ENOTDIR": ("a part of its path is a file and no folder", "Correct the path."),
    "EISDIR": ("it is a folder", "Give the path of a file."),
    "EEXIST": ("something else of that name exists", "Remove it, or use another name."),
    "ENOTEMPTY": ("a folder of that name is not empty", "Remove it, or use another name."),
    "ELOOP": ("its symbolic links lead in a circle", "Mend or delete the links."),
    "ENAMETOOLONG": ("its name is too long", "Use shorter names."),
    "EIO": ("the disk reports an error", "Check the disk, and use another one."),
    "ENXIO": ("the device is gone", "Check that the disk is still connected."),
    "ENODEV": ("the device is gone", "Check that the disk is still connected."),
    "ESTALE": ("the network disk lost it", "Mount the disk again."),
    "ETIMEDOUT": ("the disk did not answer in time", "Check the disk or the network."),
    "EBUSY": ("another program uses it", "Close the other program, then try again."),
    "ETXTBSY": ("another program uses it", "Close the other program, then try again."),
    "ENOMEM": ("the computer's memory is full", "Close other programs, or lower the sizes."),
    "EINVAL": ("the system does not take such a path or such a file", "Check the path."),
}
_BY_NUMBER = {
    number: words
    for name, words in _SYSTEM.items()
    if (number := getattr(errno, name, None)) is not None
}


def system_reason(error: OSError) -> str:
    """Why the system refused, as the end of a sentence, without a full stop.

    >>> system_reason(OSError(errno.EFBIG, "File too large"))
    'the file would be larger than the file system or this shell allows'
    """
    known = _BY_NUMBER.get(error.errno or 0)
    if known is not None:
        return known[0]
    return (error.strerror or str(error) or type(error).__name__).rstrip(".")


def system_fix(error: OSError) -> str:
    """What to do about what the system refused, as an instruction.

    >>> system_fix(OSError(errno.ENOSPC, "No space left on device"))
    'Free some space, or use another disk.'
    """
    known = _BY_NUMBER.get(error.errno or 0)
    return known[1] if known is not None else "Check the disk and the path."
