"""Visitors: large layers outside the blocks are kept in host memory, and copied to the device for
their single call.

They run once in a pass, before the blocks or after them, and need nothing sent ahead: what their
copy takes is a few milliseconds. They go together with streamed blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from musubi.memory.blocks import blocks, wrap
from musubi.memory.stream import Home, empty
from musubi.plugin.traits import Traits

SMALLEST = 1 << 24
"""Numbers in a matrix: smaller ones stay on the device."""
NAME = "visit"


def visitors(
    module: nn.Module, traits: Traits, smallest: int = SMALLEST
) -> Iterator[tuple[str, nn.Linear]]:
    """Name and layer of each large linear layer that belongs to no block.

    Args:
        module: On any device, the meta device too.
        traits: Of the network.
        smallest: Numbers in the smallest matrix that is meant.
    """
    inside = {id(part) for block in blocks(module, traits) for part in block.modules()}
    for name, part in module.named_modules():
        if (
            isinstance(part, nn.Linear)
            and id(part) not in inside
            and part.weight.numel() >= smallest
        ):
            yield name, part


def apply(layer: nn.Linear, home: Home, device: torch.device) -> None:
    """Copy the layer's tensors to the device for each call, and free them afterwards."""
    empty(home, device)
    wrap(layer, NAME, functools.partial(_visit, home=home, device=device))


def _visit(
    layer: nn.Module,
    inner: Callable[..., Any],
    *args: Any,
    home: Home,
    device: torch.device,
    **kwargs: Any,
) -> Any:
    there = home.buffer.to(device, non_blocking=True, copy=True)
    # An 8-bit weight has its scale among the buffers.
    owners: list[dict[str, Any]] = [
        layer._parameters if item.leaf in layer._parameters else layer._buffers
        for item in home.items
    ]
    pairs = list(zip(owners, home.items, strict=True))
    away = [(owned, item.leaf, owned[item.leaf]) for owned, item in pairs]
    for owned, item in pairs:
        # Tensors of their own: what the backward pass may keep must not be emptied under it.
        come = item.view(there)
        parameter = owned is layer._parameters
        owned[item.leaf] = nn.Parameter(come, requires_grad=False) if parameter else come
    try:
        return inner(*args, **kwargs)
    finally:
        for owned, leaf, tensor in away:
            owned[leaf] = tensor
