"""Bytes of a network's weights under a policy, exactly: on the device, and page-locked on the host."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from musubi.memory import quantized
from musubi.memory.blocks import stacks
from musubi.memory.stream import SLOTS, layout, spread
from musubi.memory.visitors import visitors
from musubi.plugin.architecture import Component
from musubi.plugin.policy import Storage
from musubi.weights.meta import on_meta

# The device's allocator hands out whole multiples of this.
_ROUND = 512


@dataclass(frozen=True)
class WeightSizes:
    """Sizes of a network's parts, as they are stored.

    Attributes:
        outside: Bytes of everything outside the stacks.
        blocks: For each stack, the bytes of each of its blocks.
        visitors: Bytes of what is outside, and goes to the host when blocks are streamed.
        matrix: Numbers in the largest matrix in 8 bits.
    """

    outside: int
    blocks: tuple[tuple[int, ...], ...]
    visitors: int = 0
    matrix: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.outside + sum(map(sum, self.blocks))

    def placed(self, streamed: tuple[int, ...]) -> tuple[int, int]:
        """Bytes on the device, slots included, and bytes page-locked on the host.

        Args:
            streamed: Blocks of each stack that live on the host; missing stacks stream none.
        """
        away = [size for stack, count in zip(self.blocks, streamed, strict=False)
                for place in spread(len(stack), count) for size in (stack[place],)]  # fmt: skip
        if not away:
            return self.total, 0
        gone = sum(away) + self.visitors
        return self.total - gone + SLOTS * max(away), gone


def weights_of(
    component: Component,
    numbers: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    storage: Storage = "native",
) -> WeightSizes:
    """The sizes of a network that is loaded in `dtype` and stored as `storage` says.

    Nothing is read: the network is built on the meta device. Answers are remembered.
    """
    key = tuple(sorted((k, _hashable(v)) for k, v in numbers.items()))
    return _weights(_Known(component), key, dtype, storage)


@dataclass(frozen=True)
class _Known:
    """A component as a key: one is made once in a process."""

    component: Component

    def __hash__(self) -> int:
        return id(self.component)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and other.component is self.component


@functools.lru_cache(maxsize=64)
def _weights(
    known: _Known, numbers: tuple[tuple[str, Any], ...], dtype: torch.dtype, storage: Storage
) -> WeightSizes:
    component = known.component
    module = on_meta(component, dict(numbers), dtype)
    eights: list[str] = []
    if storage != "native":
        eights = list(
            quantized.convert(module, component.traits, quantized_matmul=False, storage=storage)
        )
    inside: set[int] = set()
    blocks = []
    for stack in stacks(module, component.traits):
        blocks.append(tuple(layout(block)[1] for block in stack))
        inside |= {id(t) for block in stack for t in _tensors(block)}
    rest = {id(t): t for t in _tensors(module) if id(t) not in inside}
    outside = sum(_rounded(t.numel() * t.element_size()) for t in rest.values())
    visiting = sum(layout(layer)[1] for _, layer in visitors(module, component.traits))
    matrix = max((module.get_parameter(name).numel() for name in eights), default=0)
    return WeightSizes(outside, tuple(blocks), visiting, matrix)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _rounded(size: int) -> int:
    return -(-size // _ROUND) * _ROUND


def _hashable(value: Any) -> Hashable:
    return tuple(value) if isinstance(value, list) else value
