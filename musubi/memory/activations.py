"""Activations on the host: what blocks keep for the backward pass waits in page-locked memory.

A tensor is copied away while the next block runs, and sent for one block before it is needed.
Kept on the device are weights, and what every block is given: text, rotary tables, the time.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import torch

from musubi.memory.host import host_bytes
from musubi.spec.report import Quiet, Report

SMALLEST = 1 << 20
"""Bytes: smaller tensors cost more to send than to keep."""


@dataclass
class Parked:
    """A tensor on the host, and its way back.

    Attributes:
        host: Its bytes.
        back: It again, on the device, once it was sent for.
    """

    lot: Lot
    index: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    host: torch.Tensor
    back: torch.Tensor | None = None
    ready: Any = None

    def unpack(self) -> torch.Tensor:
        return self.lot.collect(self)


@dataclass
class Lot:
    """The host memory of one network's activations; buffers are used again in every step.

    Args:
        device: Where the network runs.
        smallest: In bytes; what is smaller stays.
        report: Told when the memory cannot be page-locked.
    """

    device: torch.device
    smallest: int = SMALLEST
    report: Report = field(default_factory=Quiet)
    _free: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    _here: dict[int, list[Parked]] = field(default_factory=dict)
    _side: Any = None

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
        if tensor.device.type == "cuda" and self._side is None:
            self._side = torch.cuda.Stream(self.device)
        size = tensor.numel() * tensor.itemsize
        parked = Parked(
            self, index, tensor.dtype, tensor.shape, tensor.stride(), self._buffer(size)
        )
        flat = _flat(tensor)
        if self._side is None:
            parked.host.copy_(flat)
        else:
            before = torch.cuda.current_stream(self.device).record_event()
            with torch.cuda.stream(self._side):
                self._side.wait_event(before)
                parked.host.copy_(flat, non_blocking=True)
            tensor.record_stream(self._side)
        self._here.setdefault(index, []).append(parked)
        return parked

    def send(self, index: int) -> None:
        """Send for everything of block `index`."""
        for parked in self._here.pop(index, []):
            self._fetch(parked)

    def collect(self, parked: Parked) -> torch.Tensor:
        """The tensor on the device, for what is enqueued next."""
        if parked.back is None:
            waiting = self._here.get(parked.index, [])
            if parked in waiting:
                waiting.remove(parked)
            self._fetch(parked)
        back = parked.back
        assert back is not None
        if parked.ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(parked.ready)
            back.record_stream(current)
        return back

    def start(self) -> None:
        """A new forward pass: what an abandoned one left is forgotten."""
        self._here.clear()

    def _fetch(self, parked: Parked) -> None:
        if self._side is None:
            back = parked.host.to(self.device, copy=True)
        else:
            with torch.cuda.stream(self._side):
                back = torch.empty_like(parked.host, device=self.device)
                back.copy_(parked.host, non_blocking=True)
                parked.ready = self._side.record_event()
        parked.back = back.view(parked.dtype).as_strided(parked.shape, parked.stride)
        # The side stream keeps the order: a later copy into the buffer comes after this one.
        self._free.setdefault(parked.host.numel(), []).append(parked.host)

    def _buffer(self, size: int) -> torch.Tensor:
        free = self._free.get(size)
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
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
