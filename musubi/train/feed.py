"""Which records make which step, and reading them ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from musubi.train.seeds import derive

T = TypeVar("T")
R = TypeVar("R")
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Micro:
    """One batch of one step.

    Args:
        indices: The items in it.
        number: Its place among the batches of the step, over all processes.
    """

    indices: tuple[int, ...]
    number: int


@dataclass(frozen=True)
class Step:
    """What one optimizer step is made of on this process.

    Args:
        micros: The batches of this process; none when an epoch's last step has too few for all.
        total: The batches of the step over all processes: each counts 1 / total.
        end: How many batches of the epoch are used up after this step.
    """

    micros: tuple[Micro, ...]
    total: int
    end: int


def steps_of(
    batches: Sequence[Sequence[int]],
    *,
    accumulation: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
) -> Iterator[Step]:
    """The steps of an epoch from its batch `start` on.

    Processes take turns, so that two processes use the batches that one process accumulating twice
    as many would. The last step of an epoch is made of what is left.
    """
    size = accumulation * world
    for begin in range(start, len(batches), size):
        chosen = batches[begin : begin + size]
        mine = [
            Micro(tuple(indices), number)
            for number, indices in enumerate(chosen)
            if number % world == rank
        ]
        yield Step(tuple(mine), len(chosen), begin + len(chosen))


def steps_per_epoch(batches: int, accumulation: int, world: int) -> int:
    """Optimizer steps that an epoch of so many batches takes."""
    return -(-batches // (accumulation * world))


def workers(asked: int) -> int:
    """Threads to read with: what was asked for, at most one for each core."""
    return min(asked, os.cpu_count() or 1)


def ahead(
    work: Callable[[T], R], jobs: Iterator[T], pool: ThreadPoolExecutor | None, depth: int
) -> Iterator[tuple[T, R]]:
    """(job, its result), in order, with up to `depth` results made ahead in `pool`.

    Without a pool each is made when it is asked for.
    """
    if pool is None:
        for job in jobs:
            yield job, work(job)
        return
    waiting: deque[tuple[T, Future[R]]] = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(work, job)))
            if len(waiting) > depth:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def split(keys: Sequence[str], amount: float) -> tuple[list[int], list[int]]:
    """Indices to train on, and indices held back.

    Who is held back depends on its key alone, so that it stays held back when others are added.
    Items of one key (the clips of one video) go together.

    Args:
        keys: One for each item.
        amount: A ratio below 1, or a number of keys.
    """
    order = sorted(set(keys), key=lambda key: derive(0, "validation", key))
    if amount <= 0 or len(order) < 2:
        return list(range(len(keys))), []
    if amount < 1:
        held = {k for k in order if derive(0, "validation", k) < amount * 2**63} or {order[0]}
    else:
        held = set(order[: int(amount)])
    if len(held) == len(order):
        held.discard(order[-1])
    training = [i for i, key in enumerate(keys) if key not in held]
    return training, [i for i, key in enumerate(keys) if key in held]
