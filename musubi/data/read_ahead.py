"""Read captions, clips and records ahead in threads, while earlier ones are used."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_LOOK = 0.2
"""Seconds between looks at whether to stop; a blocked wait would hold back Ctrl+C on Windows."""

_STALL = 120.0
"""Seconds without any result after which the tasks under way are named."""


def read_ahead(
    tasks: Iterable[Task],
    work: Callable[[Task], Iterable[Result]],
    *,
    workers: int,
    ahead: int,
    in_order: bool = False,
    stalled: Callable[[list[Task]], None] = lambda tasks: None,
) -> Generator[tuple[Task, Result | Exception], None, None]:
    """Run `work` on each task in threads, and yield each task with each of its results.

    What a task raises is yielded in the place of its next result and ends that task alone. Closing
    the iterator stops the threads.

    Args:
        tasks: Taken up in order, one at a time.
        work: Yields a task's results.
        workers: Number of threads. 0: each task is done when its results are asked for.
        ahead: How many results may wait at once, besides one in each thread.
        in_order: Results come in the order of tasks, and else as soon as they are there.
        stalled: Called with the running tasks if no result has come for two minutes.
    """
    if workers < 1:
        for task in tasks:
            for result in _results(work, task):
                yield task, result
        return
    line = _Line[Task, Result](tasks, work, ahead, in_order)
    threads = [
        threading.Thread(target=line.serve, name=f"read-{i}", daemon=True) for i in range(workers)
    ]
    for thread in threads:
        thread.start()
    heard = time.monotonic()
    try:
        while line.running or line.waiting:
            found = line.take()
            if found is not None:
                yield found
                heard = time.monotonic()
            elif time.monotonic() - heard > _STALL:
                heard = time.monotonic()
                stalled(list(line.current.values()))
        if line.broken is not None:
            raise line.broken
    finally:
        line.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join(timeout=_STALL)


def _results(
    work: Callable[[Task], Iterable[Result]], task: Task
) -> Generator[Result | Exception, None, None]:
    try:
        yield from work(task)
    except Exception as error:  # the one who takes results decides what is fatal
        yield error


class _Line(Generic[Task, Result]):
    """What the threads share; `changed` guards all of it."""

    def __init__(
        self,
        tasks: Iterable[Task],
        work: Callable[[Task], Iterable[Result]],
        ahead: int,
        in_order: bool,
    ) -> None:
        self.tasks = iter(tasks)
        self.work = work
        self.ahead = ahead
        self.in_order = in_order
        self.changed = threading.Condition()
        self.choosing = threading.Lock()
        self.stopped = False
        self.broken: Exception | None = None
        self.current: dict[int, Task] = {}  # number of a task that is under way → the task
        self.begun = 0
        self.exhausted = False
        self.waiting: deque[tuple[int, Task, Result | Exception]] = deque()

    @property
    def running(self) -> bool:
        """Whether results may still come."""
        with self.changed:
            return not self.exhausted or bool(self.current)

    def stop(self) -> None:
        """Let every thread end at its next result."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def take(self) -> tuple[Task, Result | Exception] | None:
        """The next result; None when none has come for a moment."""
        with self.changed:
            place = self._next()
            if place is None:
                self.changed.wait(_LOOK)
                place = self._next()
            if place is None:
                return None
            _, task, result = self.waiting[place]
            del self.waiting[place]
            self.changed.notify_all()
            return task, result

    def _next(self) -> int | None:
        if not self.waiting:
            return None
        if not self.in_order:
            return 0
        place = min(range(len(self.waiting)), key=lambda i: self.waiting[i][0])
        return place if self.waiting[place][0] <= self._oldest() else None

    def _oldest(self) -> int:
        """The number of the first task that may still have results."""
        return min(self.current, default=self.begun)

    def serve(self) -> None:
        """The loop of one thread."""
        while (found := self._begin()) is not None:
            number, task = found
            for result in _results(self.work, task):
                if not self._put(number, task, result):
                    return
            with self.changed:
                del self.current[number]
                self.changed.notify_all()

    def _begin(self) -> tuple[int, Task] | None:
        with self.choosing:  # so that tasks are numbered in their order
            if self.exhausted or self.stopped:
                return None
            try:
                task = next(self.tasks)
            except Exception as error:
                with self.changed:
                    self.exhausted = True
                    self.broken = None if isinstance(error, StopIteration) else error
                    self.changed.notify_all()
                return None
            with self.changed:
                number = self.begun
                self.begun += 1
                self.current[number] = task
            return number, task

    def _put(self, number: int, task: Task, result: Result | Exception) -> bool:
        with self.changed:
            # The task whose result is next never waits for other tasks, which wait for it.
            while not self.stopped and len(self.waiting) >= self.ahead:
                if self.in_order and number == self._oldest() and self._next() is None:
                    break
                self.changed.wait(_LOOK)
            self.waiting.append((number, task, result))
            self.changed.notify_all()
            return not self.stopped
