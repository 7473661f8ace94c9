"""Streaming: frozen blocks are kept in host memory, and copied to one of two slots on the device
when they run.

Nothing is ever copied back, because nothing in them changes. A copy is sent one block ahead on a
stream of its own, in the direction of travel; a block that is away holds empty tensors, so that a
mistake fails loudly on any device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from musubi.memory.host import host_bytes
from musubi.plugin.report import Report

SLOTS = 2
# Copies want whole cache lines, and products in 8 bits 16 bytes.
_ALIGNMENT = 256


@dataclass(frozen=True)
class BlockTensor:
    """One tensor of a block: the module that owns it, and its position in the block's buffer."""

    owner: nn.Module
    leaf: str
    dtype: torch.dtype
    shape: torch.Size
    offset: int

    @property
    def tensor(self) -> torch.Tensor:
        """The parameter or buffer itself."""
        return getattr(self.owner, self.leaf)

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        """This tensor in a buffer laid out for its block."""
        size = self.shape.numel() * self.dtype.itemsize
        return buffer[self.offset : self.offset + size].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Home:
    """A block's host memory: one contiguous buffer, so that one copy is enough."""

    items: tuple[BlockTensor, ...]
    buffer: torch.Tensor


class BlockStream:
    """The slots on the device, and the blocks that use them in turn.

    Args:
        homes: Number of a block, in the order blocks run → its place; blocks without one stay on
            the device.
        count: How many blocks run in all.
        device: Where the slots are made.
    """

    def __init__(self, homes: dict[int, Home], count: int, device: torch.device) -> None:
        self.homes = homes
        self.count = count
        self.device = device
        self._size = max(home.buffer.numel() for home in homes.values())
        self._slots: list[torch.Tensor] = []
        self._held: list[int | None] = [None] * SLOTS
        self._ready: list[Any] = [None] * SLOTS
        self._side: Any = None
        for home in homes.values():
            empty(home, device)

    def enter(self, index: int, *, backward: bool = False) -> None:
        """Make sure that block `index` is in its slot, and start to copy the next one.

        Args:
            index: The block's number.
            backward: The direction of travel.
        """
        if not self._slots:
            self._open()
        if index in self.homes:
            slot = self._slot_of(index)
            if slot is None:
                slot = self._free_slot(keep=None)
                self._bring(index, slot)
            if self._ready[slot] is not None:
                torch.cuda.current_stream(self.device).wait_event(self._ready[slot])
        following = self._following(index, -1 if backward else 1)
        if following is not None and self._slot_of(following) is None:
            self._bring(following, self._free_slot(keep=index))

    def leave(self) -> None:
        """Free the slots; they are allocated again when a block runs."""
        for index, ready in zip(self._held, self._ready, strict=True):
            if index is not None:
                empty(self.homes[index], self.device)
            if ready is not None:
                # A copy may still be running into memory that is about to be freed.
                torch.cuda.current_stream(self.device).wait_event(ready)
        self._slots, self._held, self._ready = [], [None] * SLOTS, [None] * SLOTS

    def pack(self, tensor: torch.Tensor) -> Any:
        """If a tensor saved for the backward pass is in a slot, return its block and position instead."""
        storage = tensor.untyped_storage().data_ptr()
        for slot, buffer in enumerate(self._slots):
            held = self._held[slot]
            if held is not None and storage == buffer.untyped_storage().data_ptr():
                return _Away(
                    self,
                    held,
                    tensor.dtype,
                    tensor.shape,
                    tensor.stride(),
                    int(tensor.storage_offset()),
                )
        return None

    def slot(self, index: int) -> torch.Tensor:
        """The buffer in which block `index` is."""
        found = self._slot_of(index)
        if found is None:
            raise RuntimeError(f"block {index} is away while its backward pass runs")
        return self._slots[found]

    def _open(self) -> None:
        make = {"dtype": torch.uint8, "device": self.device}
        self._slots = [torch.empty(self._size, **make) for _ in range(SLOTS)]
        if self.device.type == "cuda" and self._side is None:
            self._side = torch.cuda.Stream(self.device)

    def _slot_of(self, index: int) -> int | None:
        return self._held.index(index) if index in self._held else None

    def _free_slot(self, keep: int | None) -> int:
        return next(i for i, held in enumerate(self._held) if held is None or held != keep)

    def _following(self, index: int, step: int) -> int | None:
        """The next streamed block in this direction; after the last one comes the first."""
        for distance in range(1, self.count):
            number = (index + step * distance) % self.count
            if number in self.homes:
                return number
        return None

    def _bring(self, index: int, slot: int) -> None:
        held = self._held[slot]
        if held is not None:
            empty(self.homes[held], self.device)
        home, buffer = self.homes[index], self._slots[slot]
        target = buffer[: home.buffer.numel()]
        if self._side is None:
            target.copy_(home.buffer)
        else:
            # Operations enqueued earlier may still read the slot.
            before = torch.cuda.current_stream(self.device).record_event()
            with torch.cuda.stream(self._side):
                self._side.wait_event(before)
                target.copy_(home.buffer, non_blocking=True)
                self._ready[slot] = self._side.record_event()
        self._held[slot] = index
        for item in home.items:
            item.tensor.data = item.view(buffer)


@dataclass(frozen=True)
class _Away:
    """A saved tensor of a streamed block; it is found again in the block's current slot."""

    stream: BlockStream
    index: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def unpack(self) -> torch.Tensor:
        whole = self.stream.slot(self.index)
        whole = whole[: whole.numel() // self.dtype.itemsize * self.dtype.itemsize]
        return whole.view(self.dtype).as_strided(self.shape, self.stride, self.offset)


def spread(count: int, streamed: int) -> list[int]:
    """Which of `count` blocks are streamed: evenly spread, so that copies never pause."""
    return [i for i in range(count) if (i + 1) * streamed // count > i * streamed // count]


def layout(
    block: nn.Module, dtypes: dict[int, torch.dtype] | None = None
) -> tuple[list[BlockTensor], int]:
    """The tensors of a block side by side, and the bytes that they take.

    Args:
        block: On any device, the meta device too.
        dtypes: `id` of a tensor → the dtype it will have.
    """
    items, offset = [], 0
    for owner, leaf, tensor in _tensors(block):
        dtype = (dtypes or {}).get(id(tensor), tensor.dtype)
        items.append(BlockTensor(owner, leaf, dtype, tensor.shape, offset))
        offset += -(-tensor.numel() * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return items, offset


def housed(items: Sequence[BlockTensor], size: int, device: torch.device, report: Report) -> Home:
    """A place in host memory for a block, empty as yet."""
    return Home(tuple(items), host_bytes(size, device, report))


def _tensors(block: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    seen = set()
    for owner in block.modules():
        own = [*owner._parameters.items(), *owner._buffers.items()]
        for leaf, tensor in own:
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield owner, leaf, tensor


def empty(home: Home, device: torch.device) -> None:
    """Leave nothing of a home's tensors on the device but their dtypes."""
    # On the device, where its layer runs: what is put beside a layer asks where that is.
    for item in home.items:
        item.tensor.data = torch.empty(0, dtype=item.dtype, device=device)
