"""What one block of each stack costs, read from a recorded step: bytes, operations, traffic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from musubi.estimate import fused
from musubi.estimate.trace import Kind, Op, Trace, TraceMark

KINDS: tuple[Kind, ...] = (
    "product",
    "product8",
    "product int8",
    "convolution",
    "attention",
    "attention backward",
    "elementwise",
)
# Turning 8-bit weights into wider numbers takes this much longer than its traffic says: fitted so that
# a text encoder of 5 billion weights, run eagerly on an H200, takes the 45 ms that were measured.
_WIDENING = 3.7
# They give memory another shape, and start nothing on the device.
_NO_KERNEL = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty")
# Compiled backward passes were measured to need up to a quarter more than what must be alive.
_SLACK = 1.08


@dataclass(frozen=True)
class Work:
    """Operations by kind, bytes that element-wise operations move, and how many kernels are started."""

    flops: dict[Kind, float] = field(default_factory=dict[Kind, float])
    traffic: float = 0.0
    kernels: float = 0.0

    def plus(self, other: Work, times: float = 1.0) -> Work:
        """The sum, `other` counted so many times."""
        flops: dict[Kind, float] = {
            k: self.flops.get(k, 0.0) + times * other.flops.get(k, 0.0) for k in KINDS
        }
        return Work(
            flops,
            self.traffic + times * other.traffic,
            self.kernels + times * other.kernels,
        )


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One block of a stack, in bytes.

    Attributes:
        start: What is alive when it begins.
        forward: The most it needs for itself in its forward pass.
        kept: By how much what is kept for the backward pass grows.
        parked: The part of it that may wait on the host.
        backward: The most it needs in its backward pass, over what is alive when that begins.
        given_back: By how much memory in use falls in its backward pass; its gradients are counted.
        joint: What stands between this stack and the next one grows by this much.
        work: Of one block, forward and backward.
    """

    start: int
    forward: int
    kept: int
    parked: int
    backward: int
    given_back: int
    joint: int
    work: Work


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A step: what surrounds the blocks, and each stack.

    Attributes:
        before: The peak before the first block.
        start: What is alive when the first block begins.
        done: What is alive when the last block that was run is done.
        after: What the end of the forward pass needs over what is alive then.
        tail: By how much memory in use grows from the last block to the loss.
        turn: What the backward pass needs before it reaches a block.
        turned: By how much memory in use changes from the loss to the last block.
        trains: Whether there is a backward pass.
    """

    before: int
    start: int
    done: int
    after: int
    tail: int
    turn: int
    turned: int
    trains: bool
    stacks: tuple[Stack, ...]
    work: Work


def figures(
    trace: Trace, depths: Sequence[int], *, compiled: bool, sliced: bool = False
) -> Figures:
    """Read a recording of `estimate.record`.

    Args:
        trace: The recording.
        depths: How many blocks of each stack were run.
        compiled: Count what is left when element-wise operations are fused inside blocks.
        sliced: Feed-forward layers were computed in slices.
    """
    trains = any(mark.name == "loss" for mark in trace.marks)
    end = trace.find("loss" if trains else "end", -1)
    first, last = 0, sum(depths) - 1
    begin, done = trace.find("in", first), trace.find("out", last)
    stacks, number = [], 0
    for depth in depths:
        number += depth
        following = trace.find("in", number) if number < sum(depths) else None
        stacks.append(_stack(trace, number - 1, depth, following, trains, compiled, sliced))
    inside = [(trace.find("in", i).at, trace.find("out", i).at) for i in range(last + 1)]
    around = _outside(trace, inside, end.at)
    turn = turned = 0
    if trains:
        back = trace.find("back", last)
        turn = _peak(trace.ops[end.at : back.at]) - end.live
        turned = back.live - end.live
        around = around.plus(work_of(trace.ops[end.at : back.at]))
    return Figures(
        before=_peak(trace.ops[: begin.at]),
        start=begin.live,
        done=done.live,
        after=max(0, _peak(trace.ops[done.at : end.at]) - done.live),
        tail=end.live - done.live,
        turn=max(0, turn),
        turned=turned,
        trains=trains,
        stacks=tuple(stacks),
        work=around,
    )


def _stack(
    trace: Trace,
    index: int,
    depth: int,
    following: TraceMark | None,
    trains: bool,
    compiled: bool,
    sliced: bool,
) -> Stack:
    start, end = trace.find("in", index), trace.find("out", index)
    ops = trace.ops[start.at : end.at]
    joint = 0 if following is None else following.live - end.live
    work = work_of(ops)
    backward = given_back = parked = 0
    if trains:
        back = trace.find("back", index)
        stop = trace.find("back", index - 1) if depth > 1 else trace.find("end", -1)
        parts = trace.ops[back.at : stop.at]
        backward = _peak(parts) - back.live
        given_back = back.live - stop.live
        work = work.plus(work_of(parts))
        parked = _parked(trace, index, depth)
    # Without gradients nothing accumulates: a block's input goes when its output is there.
    kept = end.live - start.live if trains else 0
    forward = max(0, _peak(ops) - start.live)
    if compiled:
        read = fused.read(trace, index, trains=trains, sliced=sliced)
        kept = read.kept
        parked = parked if read.parked is None else read.parked
        forward = read.forward
        backward = read.backward if sliced else int(_SLACK * read.backward)
        given_back = read.given_back if trains else 0
        work = Work(work.flops, read.traffic, work.kernels)
    return Stack(
        start=start.live,
        forward=forward,
        kept=kept,
        parked=parked,
        backward=backward,
        given_back=given_back,
        joint=joint,
        work=work,
    )


# Smaller tensors stay on the device.
PARKED_FROM = 1 << 20


def _parked(trace: Trace, index: int, depth: int) -> int:
    """What a block keeps in large pieces: its input and what it made itself."""
    first = index - 1 if depth > 1 else index
    start, end = trace.find("in", first).at, trace.find("out", first).at
    loss = trace.find("loss", -1).at
    return sum(
        size
        for number, size in trace.sizes.items()
        if size >= PARKED_FROM
        and start <= trace.born[number] < end
        and trace.died.get(number, 1 << 60) > loss
    )


def _peak(ops: Iterable[Op]) -> int:
    return max((op.live for op in ops), default=0)


def work_of(ops: Iterable[Op]) -> Work:
    """What these operations take when they run one by one."""
    flops: dict[Kind, float] = {}
    traffic, kernels = 0.0, 0
    for op in ops:
        kernels += op.name not in _NO_KERNEL
        if op.kind == "elementwise":
            traffic += op.traffic * (_WIDENING if op.widens else 1.0)
        else:
            flops[op.kind] = flops.get(op.kind, 0.0) + op.flops
    return Work(flops, traffic, kernels)


def _outside(trace: Trace, inside: Sequence[tuple[int, int]], end: int) -> Work:
    """The work of the forward pass outside the blocks."""
    taken = {i for start, stop in inside for i in range(start, stop)}
    return work_of(op for i, op in enumerate(trace.ops[:end]) if i not in taken)
