"""Writing records in a thread, while the device encodes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class WriteBehind:
    """One thread that does jobs in order. Used as a context manager: leaving it waits for all jobs.

    The first error of a job is raised by the next `put`, or on leaving; later jobs are not begun.

    Args:
        depth: Most jobs that wait at once.
    """

    def __init__(self, depth: int = 8) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="write", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Queue a job; waits while the queue is full."""
        self._raise()
        self._jobs.put(job)

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._jobs.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is not None:
                continue
            try:
                job()
            except BaseException as error:  # raised again in the thread that queues
                self._error = error
