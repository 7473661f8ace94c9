"""Temporary names: whose they are, and who clears them away.

A file is written as `.musubi-HOST-PID-TIME-RANDOM.tmp` beside its place. The name says who writes it, so
that the next command that writes into the folder can delete what a killed one left.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ABANDONED = 24 * 3600.0
"""Seconds without a change after which a temporary file counts as abandoned, whatever process it belongs to."""

_NAME = re.compile(r"\.musubi-(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,10})-\d{1,12}-[0-9a-f]{8}\.tmp")
_OLD_NAME = re.compile(r"\.musubi-\d{1,10}-[0-9a-f]{1,8}\.tmp")
_OLD_ABANDONED = 600.0

_own: set[Path] = set()
_swept: set[Path] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Owner:
    """A process: its number, and the computer (or container) whose numbers these are.

    Args:
        pid: The process number.
        host: Eight hexadecimal digits.
    """

    pid: int
    host: str

    @classmethod
    def this(cls) -> Owner:
        """This process."""
        return cls(os.getpid(), _host())

    @property
    def here(self) -> bool:
        """Whether the process is one of this computer, so that its life can be told."""
        return self.host == _host()

    @property
    def alive(self) -> bool:
        """Whether the process runs; True where that cannot be told."""
        return not self.here or _runs(self.pid)


def started(pid: int) -> int:
    """When a process of this computer was started, in ticks since the computer was; 0 if unknown."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
        return int(stat.rpartition(")")[2].split()[19])
    return 0


def new_name(folder: Path) -> Path:
    """A temporary name in `folder`, noted as this process's own until `forget`."""
    # Not made of the target's name, which may be as long as a name can be.
    me = Owner.this()
    name = f".musubi-{me.host}-{me.pid}-{int(time.time())}-{secrets.token_hex(4)}.tmp"
    path = Path(folder) / name
    with _lock:
        _own.add(path)
    return path


def forget(path: Path) -> None:
    """Delete what lies under a temporary name, if anything, and forget the name."""
    _delete(path)
    with _lock:
        _own.discard(path)


def forget_all() -> None:
    """Delete every temporary file of this process, for when it must end at once."""
    with _lock:
        paths = list(_own)
    for path in paths:
        forget(path)


def sweep(folder: Path, *, again: bool = False) -> None:
    """Delete what killed processes left in a folder under temporary names.

    Args:
        folder: Only what lies in it directly.
        again: Look even when this process has swept the folder before.
    """
    folder = Path(folder)
    if folder in _swept and not again:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError):  # a folder that cannot be read is no reason to stop
        for entry in os.scandir(folder):
            if entry.name.startswith(".musubi-") and _left_over(entry):
                _delete(Path(entry.path))


def _left_over(entry: os.DirEntry[str]) -> bool:
    try:
        age = time.time() - entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return False
    found = _NAME.fullmatch(entry.name)
    if found is not None:
        owner = Owner(int(found["pid"]), found["host"])
        return age > ABANDONED or not owner.alive
    return age > _OLD_ABANDONED and _OLD_NAME.fullmatch(entry.name) is not None


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):  # another process may be quicker
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _host() -> str:
    """Names what process numbers belong to: a computer, and on Linux the container."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no file, a name
    return hashlib.blake2b(f"{socket.gethostname()} {space}".encode(), digest_size=4).hexdigest()


def _runs(pid: int) -> bool:
    if pid == os.getpid():
        return True
    if sys.platform == "win32":
        return _runs_on_windows(pid)
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    except OverflowError:
        return False
    with contextlib.suppress(
        OSError, IndexError
    ):  # one that has ended, and whose end nobody has read
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    return True


def _runs_on_windows(pid: int) -> bool:
    import ctypes

    synchronize, denied, timeout = 0x00100000, 5, 0x102
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = (ctypes.c_void_p, ctypes.c_ulong)
    kernel.CloseHandle.argtypes = (ctypes.c_void_p,)
    handle = kernel.OpenProcess(synchronize, False, pid)
    if not handle:
        return ctypes.get_last_error() == denied  # type: ignore[attr-defined]
    try:
        return kernel.WaitForSingleObject(handle, 0) == timeout
    finally:
        kernel.CloseHandle(handle)
