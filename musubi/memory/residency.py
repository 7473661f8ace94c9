"""Residency: tensors that are copied between host and device while a network runs, block by block.

Two things do: the weights of streamed blocks (`stream`), and what blocks keep for the backward
pass (`activations`). Both follow the blocks forward, and backward again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from musubi.memory.activations import Lot
from musubi.memory.blocks import blocks, wrap
from musubi.memory.stream import BlockStream
from musubi.plugin.traits import Traits

NAME = "residency"


def apply(
    module: nn.Module, traits: Traits, *, stream: BlockStream | None = None, lot: Lot | None = None
) -> None:
    """Move weights, activations, or both, as the blocks of `traits.stacks` run.

    It goes around every other policy.
    """
    every = list(blocks(module, traits))
    traveller = _Traveller(stream, lot, every)
    for index, block in enumerate(every):
        wrap(block, NAME, functools.partial(_around, traveller=traveller, index=index))


class _Traveller:
    def __init__(self, stream: BlockStream | None, lot: Lot | None, every: list[nn.Module]) -> None:
        self.stream = stream
        self.lot = lot
        self.last = len(every) - 1
        self._blocks = every

    def forward(self, index: int) -> None:
        if self.stream is not None:
            self.stream.enter(index)

    def backward(self, index: int) -> None:
        if self.stream is not None:
            self.stream.enter(index, backward=True)
        if self.lot is not None:
            self.lot.send(index)
            self.lot.send(index - 1)

    def hooks(self, index: int, args: tuple[Any, ...]) -> Any:
        carried, *shared = [a for a in args if isinstance(a, torch.Tensor)]
        stays = {a.untyped_storage().data_ptr() for a in shared} | self._own(index)
        stays -= {carried.untyped_storage().data_ptr()}

        def pack(tensor: torch.Tensor) -> Any:
            away = None
            if self.stream is not None:
                away = self.stream.pack(tensor)
            if away is None and self.lot is not None:
                away = self.lot.pack(tensor, index, stays)
            return tensor if away is None else away

        return saved_tensors_hooks(pack, _unpack)

    def _own(self, index: int) -> set[int]:
        if self.stream is not None and index in self.stream.homes:
            return set()
        block = self._blocks[index]
        tensors = (*block.parameters(), *block.buffers())
        return {t.untyped_storage().data_ptr() for t in tensors}


def _around(
    block: nn.Module, inner: Any, *args: Any, traveller: _Traveller, index: int, **kwargs: Any
) -> Any:
    traveller.forward(index)
    if not torch.is_grad_enabled():
        return inner(*args, **kwargs)
    if traveller.lot is not None:
        if index == 0:
            traveller.lot.start()
        traveller.lot.enter(index)
    with traveller.hooks(index, args):
        out = inner(*args, **kwargs)
    if isinstance(out, torch.Tensor):
        return _Turn.apply(traveller, index, out)[0]
    return type(out)(_Turn.apply(traveller, index, *out))


def _unpack(packed: Any) -> torch.Tensor:
    return packed if isinstance(packed, torch.Tensor) else packed.unpack()


class _Turn(torch.autograd.Function):
    """An operation after each block, which the backward pass reaches before the block."""

    @staticmethod
    def forward(ctx: Any, traveller: _Traveller, index: int, *outputs: torch.Tensor) -> Any:
        ctx.traveller, ctx.index = traveller, index
        return tuple(out.view_as(out) for out in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        ctx.traveller.backward(ctx.index)
        return None, None, *gradients
