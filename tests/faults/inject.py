"""Faults in the calls that change a disk: write, fsync, rename, unlink, mkdir, open. Portable: no shim, no tracer."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import signal
from collections.abc import Iterator
from typing import Any

CALLS = ("open", "write", "fsync", "rename", "unlink", "mkdir")


class _Counter:
    """Counts calls under a folder, and lets one of them fail.

    Args:
        fault: `at` (which call, from 0) and `how`: "kill", or the name of an errno; None only counts.
        under: Calls on other paths do not count.
        calls: Gets (call, path) of each.
    """

    def __init__(self, fault: dict | None, under: str, calls: list) -> None:
        self.fault = fault
        self.under = under
        self.calls = calls

    def due(self, call: str, path: object) -> str | None:
        """What is to go wrong with this call."""
        name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else str(path)
        if not name.startswith(self.under):
            return None
        number = len(self.calls)
        self.calls.append((call, name))
        if self.fault is None or number != self.fault["at"]:
            return None
        return self.fault["how"]

    def fail(self, call: str, path: object) -> None:
        """Let the call fail, if it is its turn."""
        how = self.due(call, path)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how is not None:
            number = getattr(errno, how)
            raise OSError(number, os.strerror(number), str(path))


class _File:
    """A file open for writing whose writes may fail half-way."""

    def __init__(self, file: Any, path: object, counter: _Counter) -> None:
        self._file, self._path, self._counter = file, path, counter

    def write(self, data: Any) -> int:
        how = self._counter.due("write", self._path)
        if how is None:
            return self._file.write(data)
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, how)
        raise OSError(number, os.strerror(number))  # as the system does: without a name

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def faults(fault: dict | None, under: str, calls: list) -> Iterator[None]:
    """Count the calls inside, and let one fail."""
    counter = _Counter(fault, under, calls)
    names: dict[int, object] = {}
    real = {
        "open": io.open,
        **{
            n: getattr(os, n)
            for n in ("fsync", "rename", "replace", "unlink", "remove", "mkdir", "rmdir")
        },
    }

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        writes = any(letter in mode for letter in "wax+")
        if writes:
            counter.fail("open", file)
        found = real["open"](file, mode, *args, **kwargs)
        if not writes or not isinstance(file, (str, os.PathLike)):
            return found
        names[found.fileno()] = file
        return _File(found, file, counter) if "r" not in mode else found

    def hooked(name: str, call: str) -> Any:
        def function(path: Any, *args: Any, **kwargs: Any) -> Any:
            counter.fail(call, names.get(path, path) if isinstance(path, int) else path)
            return real[name](path, *args, **kwargs)

        return function

    hooks = {
        "fsync": "fsync", "rename": "rename", "replace": "rename", "unlink": "unlink",
        "remove": "unlink", "mkdir": "mkdir", "rmdir": "unlink",
    }  # fmt: skip
    builtins.open = io.open = opened
    for name, call in hooks.items():
        setattr(os, name, hooked(name, call))
    try:
        yield
    finally:
        builtins.open = io.open = real["open"]
        for name in hooks:
            setattr(os, name, real[name])
