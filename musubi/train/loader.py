"""Which records each step uses, and reading them ahead in threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from musubi.data.read_ahead import read_ahead
from musubi.train.seeds import derive
from musubi.train.step import without_caption

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Micro:
    """One batch of one step.

    Args:
        indices: The items in it.
        number: Position of the batch within the step, over all processes.
    """

    indices: tuple[int, ...]
    number: int


@dataclass(frozen=True)
class Step:
    """The batches of one optimizer step on this process.

    Args:
        micros: The batches of this process; none when an epoch's last step has too few for all.
        total: How many batches the step has over all processes; each batch has the weight 1 /
            total.
        end: How many batches of the epoch have been used after this step.
    """

    micros: tuple[Micro, ...]
    total: int
    end: int


class RecordSource(Protocol):
    """The records that are trained on; `musubi.cache.match.TrainingSet` is one."""

    def load(
        self,
        indices: Sequence[int],
        *,
        without_caption: Sequence[bool] | None = None,
        draws: Sequence[int] | None = None,
    ) -> Batch:
        """Load a batch, on the CPU."""
        ...


def steps_of(
    batches: Sequence[Sequence[int]],
    *,
    accumulation: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
) -> Iterator[Step]:
    """The steps of an epoch, starting at batch `start`.

    Processes take batches in turn. So two processes use in one step the same batches as one process
    with twice the accumulation. The last step of an epoch takes the batches that are left.
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
    """How many optimizer steps an epoch of `batches` batches has."""
    return -(-batches // (accumulation * world))


def workers(asked: int) -> int:
    """The number of reading threads: the requested number, but at most one for each core."""
    return min(asked, os.cpu_count() or 1)


@dataclass(frozen=True)
class _BatchRead:
    """One batch to read. A step without batches on this process has one entry without a batch.

    Args:
        number: Number of the step, from 1.
        epoch: Epoch of the step.
        step: The step.
        micro: The batch.
        last: Whether this is the last batch of the step.
    """

    number: int
    epoch: int
    step: Step
    micro: Micro | None
    last: bool


@dataclass(frozen=True, kw_only=True)
class Loader:
    """The steps of a run with their batches.

    Args:
        source: The records.
        batches: Epoch, from 1 → its batches, each a list of items, for all processes.
        total: How many steps the run has.
        accumulation: Batches per step on each process.
        rank: Of this process.
        world: How many processes there are.
        dropout: Share of the items that are trained without their caption.
        seed: Of the run.
    """

    source: RecordSource
    batches: Callable[[int], Sequence[Sequence[int]]]
    total: int
    accumulation: int
    rank: int = 0
    world: int = 1
    dropout: float = 0.0
    seed: int = 0

    def steps(
        self, threads: int, *, done: int, epoch: int, start: int
    ) -> Generator[tuple[int, Step, Iterator[tuple[Micro, Batch]]], None, None]:
        """Yield the epoch, the step and its batches. Use all batches of a step before taking the
        next step.

        Args:
            threads: Number of threads; each reads one batch ahead. 0: a batch is read when it is
                needed.
            done: How many steps are already done.
            epoch: Epoch of the last step done; 0 before the first step.
            start: How many batches of that epoch have been used.
        """
        jobs = self._jobs(done, epoch, start)
        ahead = read_ahead(jobs, self._read, workers=threads, ahead=threads, in_order=True)

        def batches() -> Iterator[tuple[_BatchRead, Any]]:
            with contextlib.closing(ahead):
                for job, batch in ahead:
                    if isinstance(batch, Exception):
                        raise batch
                    yield job, batch

        stream = batches()

        def of_one(job: _BatchRead, batch: Any) -> Iterator[tuple[Micro, Batch]]:
            while True:
                if job.micro is not None:
                    yield job.micro, batch
                if job.last:
                    return
                job, batch = next(stream)

        for job, batch in stream:
            yield job.epoch, job.step, of_one(job, batch)

    def _jobs(self, number: int, epoch: int, start: int) -> Iterator[_BatchRead]:
        while number < self.total:
            batches = self.batches(epoch) if epoch else ()
            if start >= len(batches):
                epoch, start = epoch + 1, 0
                batches = self.batches(epoch)
            for step in steps_of(
                batches,
                accumulation=self.accumulation,
                rank=self.rank,
                world=self.world,
                start=start,
            ):
                number += 1
                if number > self.total:
                    return
                micros = step.micros or (None,)
                for micro in micros:
                    yield _BatchRead(number, epoch, step, micro, micro is micros[-1])
            start = len(batches)

    def _read(self, job: _BatchRead) -> Iterator[Any]:
        if job.micro is None:
            yield None
            return
        drop = None
        if self.dropout:
            seed = derive(self.seed, "caption", job.number, job.micro.number)
            drop = without_caption(self.dropout, len(job.micro.indices), seed)
        place = (job.number, job.micro.number)
        draws = [derive(self.seed, "variant", *place, n) for n in range(len(job.micro.indices))]
        yield self.source.load(job.micro.indices, without_caption=drop, draws=draws)


def split(keys: Sequence[str], amount: float) -> tuple[list[int], list[int]]:
    """Indices to train on, and indices held back.

    Whether an item is held back depends only on its key, so the choice stays the same when other
    items are added. Items of one key (the clips of one video) go together.

    Args:
        keys: One key for each item.
        amount: How much to hold back: a ratio below 1, or a number of keys.
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
