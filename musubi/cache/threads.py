"""Reading ahead and writing behind, while the device encodes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_LOOK = 0.2
"""Seconds between looks at whether to stop; a blocked wait would hold back Ctrl+C on Windows."""

_STALL = 120.0
"""Seconds without any result after which the files being read are named."""


def read_ahead(
    tasks: Sequence[Task],
    work: Callable[[Task], Iterable[Result]],
    *,
    workers: int,
    ahead: int,
    stalled: Callable[[list[Task]], None] = lambda tasks: None,
) -> Generator[tuple[Task, Result | Exception], None, None]:
    """Run `work` on each task in threads, and yield what it yields as it comes.

    What a task raises is yielded in the place of its next result and ends that task alone. Closing
    the iterator stops the threads.

    Args:
        tasks: Taken up in order.
        work: Yields a task's results.
        workers: Number of threads.
        ahead: Most results that wait at once, beside one in the hand of each thread.
        stalled: Told which tasks are under way when nothing has come for two minutes.
    """
    line = _Line[Task, Result](tasks, work, ahead)
    threads = [
        threading.Thread(target=line.serve, name=f"decode-{i}", daemon=True)
        for i in range(max(1, min(workers, len(tasks))))
    ]
    for thread in threads:
        thread.start()
    running = len(threads)
    heard = time.monotonic()
    try:
        while running:
            try:
                found = line.results.get(timeout=_LOOK)
            except queue.Empty:
                if time.monotonic() - heard > _STALL:
                    heard = time.monotonic()
                    stalled(list(line.current.values()))
                continue
            heard = time.monotonic()
            if found is None:
                running -= 1
            else:
                yield found
                heard = time.monotonic()
    finally:
        line.stop.set()
        for thread in threads:
            thread.join(timeout=_STALL)


class _Line(Generic[Task, Result]):
    """What the reading threads share."""

    def __init__(
        self, tasks: Sequence[Task], work: Callable[[Task], Iterable[Result]], ahead: int
    ) -> None:
        self.tasks = iter(tasks)
        self.work = work
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.results: queue.Queue[tuple[Task, Result | Exception] | None] = queue.Queue(ahead)
        self.current: dict[int, Task] = {}

    def serve(self) -> None:
        """The life of one thread."""
        me = threading.get_ident()
        while not self.stop.is_set():
            with self.lock:
                task = next(self.tasks, _END)
            if isinstance(task, _End):
                break
            self.current[me] = task
            try:
                for result in self.work(task):
                    if not self._put((task, result)):
                        return
            except Exception as error:  # the one who takes results decides what is fatal
                self._put((task, error))
            self.current.pop(me, None)
        self._put(None)

    def _put(self, found: tuple[Task, Result | Exception] | None) -> bool:
        while not self.stop.is_set():
            try:
                self.results.put(found, timeout=_LOOK)
            except queue.Full:
                continue
            return True
        return False


class _End:
    """Marks that the tasks are used up."""


_END = _End()


class WriteBehind:
    """One thread that does jobs in order. Used as a context manager: leaving it waits for all jobs.

    The first error of a caching is raised by the next `put`, or on leaving; later jobs are not begun.

    Args:
        depth: Most jobs that wait at once.
    """

    def __init__(self, depth: int = 8) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="write", daemon=True)
        self._thread.start()

    def put(self, caching: Callable[[], None]) -> None:
        """Queue a caching; waits while the queue is full."""
        self._raise()
        self._jobs.put(caching)

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
        while (caching := self._jobs.get()) is not None:
            if self._error is not None:
                continue
            try:
                caching()
            except BaseException as error:  # raised again in the thread that queues
                self._error = error
