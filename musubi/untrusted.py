"""Text, JSON and TOML that others wrote, read with bounds: what is wrong with them is a ValueError or an OSError.

Python's own readers answer some input otherwise: a RecursionError for brackets that nest deep, a
wait without end for a pipe, all of the memory for a file without end.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from musubi.errors import system_reason

try:
    import tomllib  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

_NO_NAME = frozenset('/\\:*?"<>|')
_DEVICES = frozenset(
    ("CON", "PRN", "AUX", "NUL", *(f"{p}{n}" for p in ("COM", "LPT") for n in range(1, 10)))
)
_NAME_BYTES = 180  # a file name has 255, and numbers and endings are added

_LARGEST = 2**64  # seeds are that large, and nothing else is
_LARGEST_FLOAT = 3e38  # of float32

TEXT_LIMIT = 16 << 20
"""Bytes of the largest text file that is read whole."""


class TextError(ValueError):
    """A text that cannot be read; the message says why."""


def read_text(path: Path | str, *, limit: int = TEXT_LIMIT) -> str:
    """A text file whole, without the mark that some editors put in front.

    Raises:
        OSError: It cannot be read.
        TextError: It is no regular file, too large, or not UTF-8.
    """
    return decoded(read_bytes(path, limit=limit))


def read_bytes(path: Path | str, *, limit: int = TEXT_LIMIT) -> bytes:
    """A file whole, when it is a regular file of no more than `limit` bytes.

    Raises:
        OSError: It cannot be read.
        TextError: It is a pipe, a device or a socket, or too large.
    """
    check_path(path)
    with open_regular(path) as file:
        found = file.read(limit + 1)
    if len(found) > limit:
        raise TextError(f"it has more than {limit >> 20} MiB, too much for such a file")
    return found


def open_regular(path: Path | str) -> Any:
    """Open a file for reading bytes; a pipe or a device, which may never answer, is refused.

    Raises:
        OSError: It cannot be opened.
        TextError: It is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits for someone to write into it.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise TextError("it is a pipe or a device and no file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def decoded(data: bytes) -> str:
    """UTF-8 as text, line ends made equal.

    Raises:
        TextError: It is not UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"it is not UTF-8 text (at byte {error.start})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_path(path: Path | str) -> None:
    """Refuse a path that no system takes.

    Raises:
        OSError: It holds a NUL, or half of a surrogate pair.
    """
    text = os.fspath(path)
    try:
        if "\0" not in text:
            os.fsencode(text)
            return
    except UnicodeEncodeError:
        pass
    raise OSError(errno.EINVAL, "the path holds characters that no path can hold", repr(text))


def text_fault(text: str) -> str | None:
    """Why a text cannot be written as UTF-8; None when it can.

    >>> text_fault("a cat")
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"it holds {text[error.start]!r}, which is half of a character"
    return None


def value_fault(value: object) -> str | None:
    """Why no option can have a value; None when one can.

    >>> value_fault(float("nan"))
    'it is no finite number'
    """
    if isinstance(value, (str, os.PathLike)):
        text = str(value)
        return "it holds a NUL" if "\0" in text else text_fault(text)
    if isinstance(value, float) and not math.isfinite(value):
        return "it is no finite number"
    if isinstance(value, (int, float)):
        most = _LARGEST if isinstance(value, int) else _LARGEST_FLOAT
        return None if -most <= value <= most else "it is too large"
    return None


def reason(error: Exception) -> str:
    """Why something could not be read, as the end of a sentence."""
    return system_reason(error) if isinstance(error, OSError) else str(error).rstrip(".")


def name_fault(name: str) -> str | None:
    """Why a text cannot be the first part of file names on every system; None when it can.

    >>> name_fault("cat-v2"), name_fault("..")
    (None, "'..' is a folder's name")
    """
    if not name.strip():
        return "it is empty"
    if set(name) == {"."}:
        return f"{name!r} is a folder's name"
    odd = next((c for c in name if c in _NO_NAME or ord(c) < 32 or 0xD800 <= ord(c) < 0xE000), None)
    if odd is not None:
        return f"it holds {odd!r}"
    if name[-1] in " ." or name[0] == " ":
        return "it begins or ends with a space, or ends with a full stop"
    if name.partition(".")[0].rstrip().upper() in _DEVICES:
        return "Windows keeps it for a device"
    if len(name.encode()) > _NAME_BYTES:
        return f"it has more than {_NAME_BYTES} bytes"
    return None


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """JSON as Python values.

    Args:
        text: The JSON.
        unique: Refuse an object with one name twice.

    Raises:
        TextError: It is not JSON, nests too deep, or has numbers of thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except TextError:
        raise
    except RecursionError as error:
        raise TextError("it nests too deep") from error
    except ValueError as error:
        raise TextError(str(error).rstrip(".")) from error


def parse_toml(text: str) -> dict[str, Any]:
    """TOML as Python values.

    Raises:
        TextError: It is not TOML, nests too deep, or has numbers of thousands of digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise TextError("it nests too deep") from error
    except ValueError as error:
        raise TextError(str(error).rstrip(".")) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise TextError(f"the name {counts.most_common(1)[0][0]!r} occurs twice")
    return found
