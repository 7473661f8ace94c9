"""Ctrl+C and SIGTERM: the first lets the step finish, the second stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from musubi.plugin.report import Report


class Stop:
    """Used as a context manager around the loop; `requested` says whether to stop.

    Outside the main thread no handler can be set, and `requested` stays as the caller sets it.
    """

    def __init__(self, report: Report) -> None:
        self.requested = False
        self._report = report
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # the last one is Windows' Ctrl+Break
                number = getattr(signal, name, None)
                if number is not None:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._report.note("Stopping after this step and saving the state. Once more stops now.")
