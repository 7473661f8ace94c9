"""Signals that ask a command to stop: Ctrl+C, SIGTERM, a lost connection. One mechanism for every command.

A signal ends a command as `KeyboardInterrupt` does, and the command is gone two seconds later, whatever
it was busy with. Training defers the first signal until its step is made and its state saved.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

GRACE = 1.5
"""Seconds that a command has to clear up before it is ended."""

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # the last one is Windows' Ctrl+Break
_SECRETS = ("--huggingface_token", "--wandb_api_key")


class StopSignal(KeyboardInterrupt):
    """A signal asked this command to stop."""


class _Asked:
    """What this process knows of its end."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Know nothing yet."""
        self.number: int | None = None
        self.ending = False  # from here on, further signals are not heard
        self.failing = False  # the same, and what is told is a failure
        self.way_on: str | None = None
        self.deferred: Deferred | None = None
        self.told = threading.Event()


_asked = _Asked()


def exit_code() -> int:
    """143 after SIGTERM and after a lost connection, 130 after Ctrl+C."""
    ended = {getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")} - {None}
    return 143 if _asked.number in ended else 130


def command_line(words: Sequence[str]) -> str:
    """Words as one line that a shell takes; secrets are left out of it.

    >>> command_line(["musubi", "train", "--config", "my run.toml"])
    "musubi train --config 'my run.toml'"
    """
    shown: list[str] = []
    for word in words:
        flag, given, _ = word.partition("=")
        hidden = bool(shown) and shown[-1] in _SECRETS
        shown.append("***" if hidden else f"{flag}=***" if given and flag in _SECRETS else word)
    return subprocess.list2cmdline(shown) if sys.platform == "win32" else shlex.join(shown)


def go_on_with(line: str) -> None:
    """Say which command takes up the work when this one is stopped."""
    _asked.way_on = line


def way_on() -> str | None:
    """The command that takes up the work, as one line."""
    return _asked.way_on


def told() -> None:
    """Note that the user has been told of the end."""
    _asked.told.set()


def fail() -> None:
    """From here on the command fails by itself: signals that come late do not turn that into a stop."""
    _asked.failing = True


def deferring() -> bool:
    """Whether work is under way that must not end before its state is saved."""
    return _asked.deferred is not None


def leave(number: int) -> None:
    """Let an output whose reader is gone lead nowhere, so that writing to it does not fail."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)


def check() -> None:
    """End what is under way when a deferred signal has come: called between the steps of long side work.

    Raises:
        StopSignal: A signal has come, and what was deferred may be left.
    """
    if _asked.deferred is not None and _asked.deferred.requested:
        raise StopSignal


class Watch:
    """Turns signals into `StopSignal` while it is entered, and sees to it that the command ends.

    Args:
        clear: Deletes what must not be left behind; called when the command is ended by force.
        say: Tells the user, when nobody did.
        final: The process is the command's own: it is ended when it does not end by itself.
    """

    def __init__(self, clear: Callable[[], None], say: Callable[[], None], *, final: bool) -> None:
        self._clear = clear
        self._say = say
        self._final = final
        self._before: dict[int, Any] = {}
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._wakeup = -1
        self._terminals: list[int] = []

    def __enter__(self) -> Watch:
        _asked.begin()
        if threading.current_thread() is not threading.main_thread():
            return self
        self._before = _install(self._handle)
        self._terminals = [number for number in (0, 1, 2) if _is_terminal(number)]
        if self._final:
            reader, writer = self._ends = socket.socketpair()
            writer.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._guard, args=(reader,), name="stop", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        if _asked.ending and self._final:
            return  # the guard sees to the end
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._ends is not None:
            signal.set_wakeup_fd(self._wakeup)
            for end in self._ends:
                end.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if _asked.ending or _asked.failing:
            return
        _asked.number = number
        if number == getattr(signal, "SIGHUP", None):
            self._leave_terminal()
        if _asked.deferred is not None and not _asked.deferred.requested:
            _asked.deferred.ask()
            return
        _asked.ending = True
        raise StopSignal

    def _leave_terminal(self) -> None:
        """Write nowhere from now on where the terminal is gone: writing to it would fail."""
        for number in self._terminals:
            if not _answers(number):
                leave(number)

    def _guard(self, reader: socket.socket) -> None:
        """The life of the thread that ends the process: the main one may be deep in foreign code."""
        heard = 0
        while True:
            try:
                byte = reader.recv(1)
            except OSError:
                return
            if not byte:
                return
            if byte[0] not in self._before or _asked.failing:
                continue
            heard += 1
            if _asked.deferred is not None and heard == 1:
                continue
            if _asked.number is None:
                _asked.number = byte[0]
            if _asked.told.wait(GRACE):
                time.sleep(GRACE / 5)  # to end by itself; but it waits for its threads without end
            self._end()

    def _end(self) -> None:
        with contextlib.suppress(Exception):
            self._clear()
        if not _asked.told.is_set():
            with contextlib.suppress(Exception):
                self._say()
        os._exit(exit_code())


class Deferred:
    """Holds the first signal back while it is entered; the second one stops at once.

    Args:
        notice: Called when the first one comes.

    Attributes:
        requested: Whether a signal has come.
    """

    def __init__(self, notice: Callable[[], None]) -> None:
        self.requested = False
        self._notice = notice
        self._before: dict[int, Any] = {}
        self._outer: Deferred | None = None

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            self._outer, _asked.deferred = _asked.deferred, self
            if not _watched():
                self._before = _install(self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        if _asked.deferred is self:
            _asked.deferred = self._outer
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def ask(self) -> None:
        """Take the first signal."""
        self.requested = True
        self._notice()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        _asked.number = number
        if self.requested:
            raise StopSignal
        self.ask()


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    before: dict[int, Any] = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is None:
            continue
        if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
            continue  # `nohup` asked for that
        before[number] = signal.signal(number, handler)
    return before


def _watched() -> bool:
    """Whether a `Watch` hears the signals, which then asks what defers them."""
    handler = signal.getsignal(signal.SIGINT)
    return isinstance(getattr(handler, "__self__", None), Watch)


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False


def _answers(number: int) -> bool:
    """Whether a terminal is still connected."""
    try:
        import termios
    except ImportError:  # Windows
        return True
    try:
        termios.tcgetattr(number)
    except (termios.error, OSError):
        return False
    return True
