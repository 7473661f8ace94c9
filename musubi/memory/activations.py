"""Activations on the host: tensors saved for the backward pass are kept in page-locked memory.

A tensor is copied to the host while the next block runs, and back one block before it is needed.
Kept on the device are weights, and what every block is given: text, rotary tables, the time.

Memory on the device follows from the order of blocks alone, however far the host is ahead: all of it
belongs to the stream that computes, which waits for a copy before what was copied is used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import torch

from musubi.memory.host import host_bytes
from musubi.memory.packed import packed, packs, unpacked
from musubi.plugin.report import Quiet, Report

SMALLEST = 1 << 20
"""Bytes: smaller tensors cost more to send than to keep."""


@dataclass(eq=False)
class Parked:
    """A tensor on the host, and its way back.

    Attributes:
        host: Its bytes.
        eight: Whether the bytes are `packed`; False once the tensor was collected.
        back: The tensor on the device: until its memory is freed, and again once its copy back has
            started.
        ready: Event after which `back` is complete; None: it always is.
    """

    lot: Lot
    index: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    host: torch.Tensor
    eight: bool = False
    back: torch.Tensor | None = None
    ready: Any = None

    def unpack(self) -> torch.Tensor:
        return self.lot.collect(self)


@dataclass
class HostPool:
    """Host memory for activations, by size; it is used again in every step.

    Attributes:
        free: Bytes → buffers of that size that hold nothing.
        side: The stream that copies to and from them: it keeps copies in order.
    """

    free: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    side: Any = None


@dataclass
class Lot:
    """One network's activations on the host.

    Args:
        device: The device that the network runs on.
        smallest: In bytes; smaller tensors stay on the device.
        eight: Tensors in 16 bits wait in 8, with a scale for each 128 numbers: half the memory and
            half of the way. What comes back is rounded, whether it was away already or not.
        report: Gets a warning if the memory cannot be page-locked.
        pool: The host memory. Networks may share it if only one of them runs at a time.
    """

    device: torch.device
    smallest: int = SMALLEST
    eight: bool = False
    report: Report = field(default_factory=Quiet)
    pool: HostPool = field(default_factory=HostPool)
    _here: dict[int, list[Parked]] = field(default_factory=dict)
    _leaving: deque[tuple[Parked, Any]] = field(default_factory=deque)
    _coming: dict[int, Parked] = field(default_factory=dict)

    def enter(self, index: int) -> None:
        """Block `index` runs next, forward: what the block before the last one kept is given up."""
        while self._leaving and self._leaving[0][0].index < index - 1:
            parked, left = self._leaving.popleft()
            self._wait(left)
            parked.back = None

    def pack(self, tensor: torch.Tensor, index: int, kept: Container[int]) -> Parked | None:
        """Send a saved tensor of block `index` away, unless it is small or stays.

        Args:
            tensor: On the device.
            index: Of its block.
            kept: Addresses of the storages that stay.
        """
        if (
            tensor.device.type != self.device.type
            or tensor.numel() * tensor.itemsize < self.smallest
        ):
            return None
        if tensor.untyped_storage().data_ptr() in kept or not _dense(tensor):
            return None
        if tensor.device.type == "cuda" and self.pool.side is None:
            self.pool.side = torch.cuda.Stream(self.device)
        eight = self.eight and packs(tensor)
        flat = _flat(tensor)
        goes = packed(flat) if eight else flat.view(torch.uint8)
        parked = Parked(
            self,
            index,
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
            self._buffer(goes.numel()),
            eight,
        )
        if self.pool.side is None:
            parked.host.copy_(goes)
        else:
            before = torch.cuda.current_stream(self.device).record_event()
            with torch.cuda.stream(self.pool.side):
                self.pool.side.wait_event(before)
                parked.host.copy_(goes, non_blocking=True)
                left = self.pool.side.record_event()
            parked.back = goes
            self._leaving.append((parked, left))
        self._here.setdefault(index, []).append(parked)
        return parked

    def send(self, index: int) -> None:
        """Send for everything of block `index`."""
        for parked in self._here.pop(index, []):
            self._fetch(parked)

    def collect(self, parked: Parked) -> torch.Tensor:
        """The tensor on the device, for what is enqueued next."""
        waiting = self._here.get(parked.index, [])
        if parked in waiting:
            waiting.remove(parked)
            self._fetch(parked)
        self._coming.pop(id(parked), None)
        self._wait(parked.ready)
        assert parked.back is not None
        if parked.eight:
            parked.back, parked.eight = unpacked(parked.back, parked.dtype), False
        return parked.back.view(parked.dtype).as_strided(parked.shape, parked.stride)

    def start(self) -> None:
        """Start a new forward pass; tensors of an abandoned one are dropped."""
        for parked, left in self._leaving:
            self._wait(left)
            parked.back = None
        for parked in self._coming.values():
            self._wait(parked.ready)
        for parked in (p for every in self._here.values() for p in every):
            self._give_back(parked)
        self._leaving.clear()
        self._coming.clear()
        self._here.clear()

    def _fetch(self, parked: Parked) -> None:
        if parked.back is not None:
            # Its memory on the device was not freed yet, so the copy on the host is not needed.
            self._leaving = deque(one for one in self._leaving if one[0] is not parked)
        elif self.pool.side is None:
            parked.back = parked.host.to(self.device, copy=True)
        else:
            back = torch.empty_like(parked.host, device=self.device)
            # Its place may still be in use by what was enqueued before.
            before = torch.cuda.current_stream(self.device).record_event()
            with torch.cuda.stream(self.pool.side):
                self.pool.side.wait_event(before)
                back.copy_(parked.host, non_blocking=True)
                parked.ready = self.pool.side.record_event()
            parked.back = back
            self._coming[id(parked)] = parked
        self._give_back(parked)

    def _give_back(self, parked: Parked) -> None:
        # The side stream keeps the order: a later copy into the buffer comes after this one.
        self.pool.free.setdefault(parked.host.numel(), []).append(parked.host)

    def _wait(self, event: Any) -> None:
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def _buffer(self, size: int) -> torch.Tensor:
        free = self.pool.free.get(size)
        if free:
            return free.pop()
        return host_bytes(size, self.device, self.report)


def _dense(tensor: torch.Tensor) -> bool:
    """Whether its numbers lie without gaps, in whatever order of axes."""
    expected = 1
    pairs = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    for stride, size in pairs:
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().as_strided((tensor.numel(),), (1,))
