"""A recorded block as a compiler runs it: element-wise chains become one kernel with what they feed.

A tensor is written to memory when a product makes it or reads it, when it leaves the block, or when
kernels on both sides of a product read it. What is kept for the backward pass is the smallest set
from which the rest follows without a product: a minimal cut.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from musubi.estimate.trace import Op, Trace

_LARGE = 1 << 20
_ENDLESS = float("inf")
_SOURCE, _SINK = ("source", 0), ("sink", 0)
_Node = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class FusedBlock:
    """What one compiled block needs, in bytes; as `figures.Stack` says.

    What is parked is None when it is the same as without a compiler.
    """

    forward: int
    kept: int
    parked: int | None
    backward: int
    given_back: int
    traffic: float


def read(trace: Trace, index: int, *, trains: bool, sliced: bool = False) -> FusedBlock:
    """Read block `index` of a recording.

    Args:
        trace: The recording.
        index: Number of the block.
        trains: Whether it has a backward pass.
        sliced: Feed-forward layers are computed in slices. As measured, what is computed again
            then runs just before it is needed, and else before the whole backward pass.
    """
    start, end = trace.find("in", index), trace.find("out", index)
    forward = trace.ops[start.at : end.at]
    leaving = _read_by(trace.ops[end.at :]) & _written_by(forward)
    if not trains:
        lived = _simulate(trace, forward, leaving, {})
        return FusedBlock(
            forward=lived.peak,
            kept=0,
            parked=0,
            backward=0,
            given_back=0,
            traffic=lived.traffic,
        )
    loss = trace.find("loss", -1).at
    leaving = _read_by(trace.ops[end.at : loss]) & _written_by(forward)
    backward, again = _backward(trace, index)
    kept_eager = end.live - start.live
    if again:
        kept = kept_eager
        saved = {
            n: s for n, s in trace.sizes.items() if _outlives(trace, n, start.at, end.at, loss)
        }
        optional: Sequence[Op] = again
        parked = None
    else:
        saved = _cut(trace, index, forward, backward)
        kept = sum(saved.values())
        optional = [op for op in forward if op.kind == "elementwise"]
        parked = sum(s for s in saved.values() if s >= _LARGE)
    inner = _written_by(forward)
    there = _simulate(trace, forward, (set(saved) & inner) | leaving, {})
    order = _on_demand(backward, optional)
    if again and not sliced:
        order = [*again, *backward]
    at = trace.find("back", index).at
    leaves = _outliving(trace, order, index)
    gone = {
        n: trace.sizes[n]
        for n in _read_by(order)
        if (trace.born[n] < at and trace.died.get(n, 1 << 60) <= _stop(trace, index))
        and (again or n in saved or n not in _written_by(forward))
    }
    back = _simulate(trace, order, leaves, gone)
    change = trace.find("back", index).live - _stop_live(trace, index)
    return FusedBlock(
        forward=there.peak,
        kept=kept,
        parked=parked,
        backward=back.peak,
        given_back=change - kept_eager + kept,
        traffic=there.traffic + back.traffic,
    )


@dataclass(frozen=True)
class _Lived:
    peak: int
    traffic: float


def _simulate(
    trace: Trace, ops: Sequence[Op], leaving: Iterable[int], given: Mapping[int, int]
) -> _Lived:
    """Run operations in this order, the element-wise ones fused.

    Args:
        trace: For the sizes.
        ops: What runs.
        leaving: Storages that must be there at the end.
        given: Storages that are there at the start and are given back after their last use.
    """
    flow = _Flow(trace, ops, set(leaving), set(given))
    events = [0] * (len(ops) + 2)
    for number in flow.held:
        events[flow.born(number)] += trace.sizes[number]
        if number not in flow.leaving:
            events[flow.last(number) + 1] -= trace.sizes[number]
    for number, size in given.items():
        events[flow.last(number) + 1] -= size
    live = peak = 0
    for position, op in enumerate(ops):
        live += events[position]
        peak = max(peak, live + op.own)
    return _Lived(peak, flow.traffic())


class _Flow:
    """Which storages of a run of operations are written to memory, and for how long."""

    def __init__(self, trace: Trace, ops: Sequence[Op], leaving: set[int], given: set[int]) -> None:
        self.trace = trace
        self.ops = ops
        self.leaving = leaving
        self.given = given
        self.writers: dict[int, list[int]] = {}
        self.readers: dict[int, list[int]] = {}
        for position, op in enumerate(ops):
            for n in op.writes:
                self.writers.setdefault(n, []).append(position)
            for n in op.reads:
                if n not in op.writes:
                    self.readers.setdefault(n, []).append(position)
        self._stages = list(itertools.accumulate(op.kind != "elementwise" for op in ops))
        self.held = {n for n in self.writers if self._must_be_held(n) or self._visited_twice(n)}
        self._ends: dict[int, int] = {}

    def born(self, number: int) -> int:
        """Where it is first written."""
        return self.writers[number][0]

    def last(self, number: int) -> int:
        """The last operation that needs it, itself or through what is computed from it."""
        known = self._ends.get(number)
        if known is not None:
            return known
        self._ends[number] = end = max(self.writers.get(number, [-1]))
        for position in self.readers.get(number, []):
            op = self.ops[position]
            end = max(end, position)
            if op.kind == "elementwise":
                for n in op.writes:
                    if n not in self.held:
                        end = max(end, self.last(n))
        self._ends[number] = end
        return end

    def traffic(self) -> float:
        """Bytes that element-wise kernels read and write."""
        total, stages = 0.0, self._stages
        for n in self.held | self.given | set(self.readers):
            size = self.trace.sizes[n]
            if n in self.writers and n not in self.held:
                continue
            fused = {
                stages[p] for p in self.readers.get(n, []) if self.ops[p].kind == "elementwise"
            }
            written = any(self.ops[p].kind == "elementwise" for p in self.writers.get(n, []))
            total += size * (len(fused) + written)
        return total

    def _must_be_held(self, number: int) -> bool:
        touching = (*self.writers[number], *self.readers.get(number, []))
        return number in self.leaving or any(self.ops[p].kind != "elementwise" for p in touching)

    def _visited_twice(self, number: int) -> bool:
        """Whether kernels on both sides of a product read it: it is then written once."""
        stages = {self._stages[position] for position in self.readers.get(number, [])}
        return len(stages) > 1


def _backward(trace: Trace, index: int) -> tuple[list[Op], list[Op]]:
    """The operations of a block's backward pass, and those of them that compute again."""
    back, stop = trace.find("back", index).at, _stop(trace, index)
    run = [m for m in trace.marks if m.name in ("run", "ran") and m.block == index and m.at >= back]
    if len(run) < 2:
        return trace.ops[back:stop], []
    first, last = run[0].at, run[1].at
    return [*trace.ops[back:first], *trace.ops[last:stop]], trace.ops[first:last]


def _stop(trace: Trace, index: int) -> int:
    return _stop_mark(trace, index)[0]


def _stop_live(trace: Trace, index: int) -> int:
    return _stop_mark(trace, index)[1]


def _stop_mark(trace: Trace, index: int) -> tuple[int, int]:
    name, block = ("back", index - 1) if index else ("end", -1)
    mark = trace.find(name, block)
    return mark.at, mark.live


def _on_demand(required: Sequence[Op], optional: Sequence[Op]) -> list[Op]:
    """`required` in its order, and each operation of `optional` just before it is needed."""
    writers: dict[int, list[int]] = {}
    for position, op in enumerate(optional):
        for n in op.writes:
            writers.setdefault(n, []).append(position)
    done: set[int] = set()
    order: list[Op] = []

    def demand(number: int, before: int) -> None:
        for position in writers.get(number, []):
            if position < before and position not in done:
                done.add(position)
                op = optional[position]
                for n in (*op.reads, *op.writes):
                    demand(n, position)
                order.append(op)

    for op in required:
        for n in op.reads:
            demand(n, len(optional))
        order.append(op)
    return order


def _outliving(trace: Trace, order: Sequence[Op], index: int) -> set[int]:
    """What the backward pass of a block leaves: gradients."""
    stop = _stop(trace, index)
    return {n for n in _written_by(order) if trace.died.get(n, 1 << 60) > stop}


def _outlives(trace: Trace, number: int, start: int, end: int, loss: int) -> bool:
    return start <= trace.born[number] < end and trace.died.get(number, 1 << 60) > loss


def _read_by(ops: Iterable[Op]) -> set[int]:
    return {n for op in ops for n in op.reads}


def _written_by(ops: Iterable[Op]) -> set[int]:
    return {n for op in ops for n in op.writes}


def _cut(trace: Trace, index: int, forward: Sequence[Op], backward: Sequence[Op]) -> dict[int, int]:
    """What is kept: number → bytes. Minimal, so that the backward pass runs no product again."""
    inner = _written_by(forward)
    shared = _shared(trace, index)
    needed = _read_by(backward)
    # PyTorch's partitioner computes nothing again that a product of the backward pass would read:
    # it would have to be written to memory there as well.
    written_again = _read_by(op for op in backward if op.kind != "elementwise")
    graph = _Graph()
    for number in inner | _read_by(forward):
        size = 0 if number in shared else trace.sizes[number]
        graph.add(("in", number), ("out", number), size)
        if number not in inner or number in written_again:
            graph.add(_SOURCE, ("in", number), _ENDLESS)
        if number in needed:
            graph.add(("out", number), _SINK, _ENDLESS)
    for op in forward:
        for written in op.writes:
            if op.kind != "elementwise":
                graph.add(_SOURCE, ("in", written), _ENDLESS)
                continue
            for number in op.reads:
                if number != written:
                    graph.add(("out", number), ("in", written), _ENDLESS)
    reached = graph.reached()
    kept = {
        n for n in inner | _read_by(forward)
        if ("in", n) in reached and ("out", n) not in reached
    }  # fmt: skip
    return {n: trace.sizes[n] for n in kept if n not in shared}


def _shared(trace: Trace, index: int) -> set[int]:
    """What every block is given, and is there in any case."""
    other = index - 1 if index else index
    start, end = trace.find("in", other), trace.find("out", other)
    here = _read_by(trace.ops[trace.find("in", index).at : trace.find("out", index).at])
    before = _read_by(trace.ops[start.at : end.at])
    made = {n for n in here & before if trace.born[n] < start.at}
    return made if other != index else set()


class _Graph:
    """A network of pipes; Dinitz's way to the largest flow, and what it still reaches then."""

    def __init__(self) -> None:
        self._room: dict[_Node, dict[_Node, float]] = {}

    def add(self, a: _Node, b: _Node, room: float) -> None:
        self._room.setdefault(a, {})
        self._room.setdefault(b, {}).setdefault(a, 0.0)
        self._room[a][b] = self._room[a].get(b, 0.0) + room

    def reached(self) -> set[_Node]:
        """The nodes on the source's side of a minimal cut."""
        while True:
            way = self._way()
            if _SINK not in way:
                return set(way)
            path, node = [], _SINK
            while node != _SOURCE:
                path.append((way[node], node))
                node = way[node]
            least = min(self._room[a][b] for a, b in path)
            if least == _ENDLESS:
                raise ValueError("the backward pass needs something that nothing separates")
            for a, b in path:
                self._room[a][b] -= least
                self._room[b][a] += least

    def _way(self) -> dict[_Node, _Node]:
        """The shortest way with room to every node: node → the one before it."""
        before: dict[_Node, _Node] = {_SOURCE: _SOURCE}
        queue = deque([_SOURCE])
        while queue:
            node = queue.popleft()
            for other, room in self._room.get(node, {}).items():
                if room > 0 and other not in before:
                    before[other] = node
                    if other == _SINK:
                        return before
                    queue.append(other)
        return before
