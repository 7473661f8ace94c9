"""Reading a checkpoint's tensors by several threads, in order, straight into the memory they get.

What goes to a device passes through a few pinned buffers, which are used again and again: while one
is filled, others are on their way. What stays on the host is read where it stays. Either way only
so much is read ahead, so the size of a checkpoint does not matter to the host.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from musubi.weights.files import Weights
from musubi.weights.finite import finite_bytes

CHUNK = 16 * 2**20  # bytes that are read and sent at once
_PIECE = 2**20  # bytes that are looked at while they are in a core's cache
_ALIGNMENT = 64
_MOST_READERS = 8
# Slower than this, in bytes a second, it is a disk: one that turns loses by being asked for two
# places at once, and others hardly gain.
_DISK = 700e6


@dataclass(frozen=True)
class Order:
    """One tensor of a file and the memory that it goes into.

    Args:
        name: Its name in the file.
        room: Gives the memory, a contiguous tensor of its shape and dtype; called once, when its
            first bytes are there or about to come, on any thread.
        host: Whether the room is host memory.
        checked: Whether its numbers are looked at on the host, while they are read.
    """

    name: str
    room: Callable[[], torch.Tensor]
    host: bool
    checked: bool = False


@dataclass(frozen=True)
class Arrived:
    """A tensor that is there, or on its way on the device's current stream.

    Args:
        tensor: What its order's room gave.
        finite: Whether its numbers are, if its order asked for a check.
    """

    tensor: torch.Tensor
    finite: bool | None


@dataclass(frozen=True)
class _Piece:
    """Bytes of one tensor; `start` is their place in the buffer, when they pass through one."""

    order: int
    at: int
    length: int
    start: int
    last: bool


@dataclass
class _Chunk:
    pieces: list[_Piece] = field(default_factory=list[_Piece])
    staged: bool = False


@dataclass
class _Buffer:
    """Memory that tensors pass through; free again when `sent` has happened on the device."""

    memory: torch.Tensor
    sent: torch.cuda.Event | None = None


class TensorStream:
    """The tensors of some orders, one after the other.

    A context manager: inside it, threads read ahead; when it ends, however it ends, none is left.

    Args:
        weights: The open file.
        orders: In the order in which they will be taken.
        device: Where rooms are that are not on the host.
        readers: How many threads; None decides by the cores.
    """

    def __init__(
        self,
        weights: Weights,
        orders: Iterable[Order],
        device: torch.device,
        *,
        readers: int | None = None,
    ) -> None:
        if device.type == "cuda" and device.index is None:
            # Threads begin with the first device, whatever this one has chosen.
            device = torch.device("cuda", torch.cuda.current_device())
        self._weights = weights
        self._orders: list[Order | None] = list(orders)
        self._device = device
        self._chunks = _chunks(weights, self._orders)
        self._readers = min(readers or _readers(), max(len(self._chunks), 1))
        self._ahead = 2 * self._readers + 2
        self._size = max((_end(c) for c in self._chunks if c.staged), default=0)
        self._rooms: dict[int, torch.Tensor] = {}
        self._infinite: set[int] = set()
        self._filled: dict[int, _Buffer | None] = {}
        self._free: deque[_Buffer] = deque()
        self._begun = 0  # chunks that a reader has taken
        self._used = 0  # chunks whose buffer was given back
        self._active = 0
        self._allowed = 1  # readers at once; all of them once the file proves to be no disk
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"weights-{i}", daemon=True)
            for i in range(self._readers)
        ]
        self._arrivals = self._arriving()

    def __enter__(self) -> TensorStream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._arrivals.close()
        self._free.clear()
        self._filled.clear()
        self._rooms.clear()

    def take(self, count: int) -> list[Arrived]:
        """The next so many tensors.

        Raises:
            CheckpointError: One of them cannot be read.
        """
        return [next(self._arrivals) for _ in range(count)]

    # On the thread that takes

    def _arriving(self) -> Generator[Arrived, None, None]:
        for index, chunk in enumerate(self._chunks):
            buffer = self._wait_for(index)
            for piece in chunk.pieces:
                if not self._at(piece).host:
                    assert buffer is not None
                    self._send(piece, buffer)
                if piece is chunk.pieces[-1]:
                    self._give_back(buffer)
                if piece.last:
                    yield self._arrived(piece)

    def _arrived(self, piece: _Piece) -> Arrived:
        order = self._at(piece)
        # Nothing of it stays here: the tensor is its taker's now.
        self._orders[piece.order] = None
        finite = piece.order not in self._infinite if order.checked else None
        return Arrived(self._rooms.pop(piece.order), finite)

    def _wait_for(self, index: int) -> _Buffer | None:
        with self._changed:
            while index not in self._filled and self._error is None:
                self._changed.wait(1.0)  # not for ever: Windows would not let Ctrl+C through
            if self._error is not None:
                raise self._error
            return self._filled.pop(index)

    def _send(self, piece: _Piece, buffer: _Buffer) -> None:
        if piece.order not in self._rooms:
            self._rooms[piece.order] = self._at(piece).room()
        if piece.length:
            room = _flat(self._rooms[piece.order])[piece.at : piece.at + piece.length]
            staged = buffer.memory[piece.start : piece.start + piece.length]
            room.copy_(staged, non_blocking=buffer.sent is not None)

    def _give_back(self, buffer: _Buffer | None) -> None:
        if buffer is not None and buffer.sent is not None:
            buffer.sent.record(torch.cuda.current_stream(self._device))
        with self._changed:
            if buffer is not None:
                self._free.append(buffer)
            self._used += 1
            self._changed.notify_all()

    def _at(self, piece: _Piece) -> Order:
        order = self._orders[piece.order]
        assert order is not None
        return order

    # On the threads that read

    def _work(self) -> None:
        try:
            cuda = self._device.type == "cuda"
            with torch.cuda.device(self._device) if cuda else nullcontext():
                while (index := self._begin()) is not None:
                    self._read(index)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _begin(self) -> int | None:
        with self._changed:
            while True:
                if self._stopped or self._error or self._begun == len(self._chunks):
                    return None
                if self._active < self._allowed and self._begun - self._used < self._ahead:
                    break
                self._changed.wait()
            self._active += 1
            self._begun += 1
            return self._begun - 1

    def _read(self, index: int) -> None:
        chunk = self._chunks[index]
        buffer = self._buffer() if chunk.staged else None
        start, length = time.perf_counter(), 0
        for piece in chunk.pieces:
            self._fill(piece, buffer)
            length += piece.length
        seconds = time.perf_counter() - start
        with self._changed:
            if length >= _PIECE:
                fast = length * self._active > _DISK * seconds
                self._allowed = self._readers if fast else 1
            self._active -= 1
            self._filled[index] = buffer
            self._changed.notify_all()

    def _buffer(self) -> _Buffer:
        with self._changed:
            buffer = self._free.popleft() if self._free else None
        if buffer is None:
            return _new_buffer(self._size, self._device)
        if buffer.sent is not None:
            buffer.sent.synchronize()
        return buffer

    def _fill(self, piece: _Piece, buffer: _Buffer | None) -> None:
        order = self._at(piece)
        if order.host:
            with self._changed:
                if piece.order not in self._rooms:
                    self._rooms[piece.order] = order.room()
                room = _flat(self._rooms[piece.order])[piece.at : piece.at + piece.length]
        else:
            assert buffer is not None
            room = buffer.memory[piece.start : piece.start + piece.length]
        view = room.numpy().data
        if not order.checked:
            self._weights.readinto(order.name, view, piece.at)
            return
        dtype = self._weights.dtypes[order.name]
        for done in range(0, piece.length, _PIECE):
            part = view[done : done + _PIECE]
            self._weights.readinto(order.name, part, piece.at + done)
            if not finite_bytes(part, dtype):
                with self._changed:
                    self._infinite.add(piece.order)


def _chunks(weights: Weights, orders: Iterable[Order | None]) -> list[_Chunk]:
    """The orders' bytes, cut and gathered into runs of about `CHUNK`."""
    chunks: list[_Chunk] = []
    used = CHUNK
    for index, order in enumerate(orders):
        assert order is not None
        left = weights.dtypes[order.name].itemsize * _count(weights.shapes[order.name])
        at = 0
        while True:
            if used >= CHUNK:
                chunks.append(_Chunk())
                used = 0
            length = min(left, CHUNK - used)
            chunks[-1].pieces.append(_Piece(index, at, length, used, length == left))
            chunks[-1].staged |= not order.host
            used += -(-length // _ALIGNMENT) * _ALIGNMENT
            at += length
            left -= length
            if not left:
                break
    return chunks


def _count(shape: Iterable[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _end(chunk: _Chunk) -> int:
    return chunk.pieces[-1].start + chunk.pieces[-1].length


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(-1).view(torch.uint8)


def _new_buffer(size: int, device: torch.device) -> _Buffer:
    if device.type == "cuda":
        try:
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            return _Buffer(memory, torch.cuda.Event(blocking=True))  # who waits for it sleeps
        except RuntimeError:  # no more memory may be pinned; slower, and works
            pass
    return _Buffer(torch.empty(size, dtype=torch.uint8))


def _readers() -> int:
    """Half of the cores that this process may use: the others convert what was read."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(_MOST_READERS, cores // 2))
