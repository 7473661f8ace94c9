"""Recompute: keep only the inputs of each block, and run the block again in the backward pass."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from musubi.spec.traits import Traits

_INNER = "_forward_before_recompute"


def apply(module: nn.Module, traits: Traits) -> int:
    """Make every block of `traits.stacks` recompute its activations in the backward pass.

    Names, parameters and numbers stay as they are: losses and gradients are bitwise the same, and
    without gradients (a preview, validation) the blocks run as before. Applying it twice is once.

    Args:
        module: The network.
        traits: Its traits; a stack is the dotted path of a `ModuleList`.

    Returns:
        The number of blocks it was applied to.
    """
    count = 0
    for block in blocks(module, traits):
        count += 1
        if _INNER in block.__dict__:
            continue
        # Bound methods, not closures: a deep copy of the module then calls the copy's own blocks.
        block.__dict__[_INNER] = block.forward
        block.__dict__["forward"] = types.MethodType(_forward, block)
    return count


def remove(module: nn.Module, traits: Traits) -> None:
    """Undo `apply`."""
    for block in blocks(module, traits):
        inner = block.__dict__.pop(_INNER, None)
        if inner is None:
            continue
        del block.__dict__["forward"]
        if getattr(inner, "__func__", None) is not type(block).forward:
            block.__dict__["forward"] = inner  # another policy had wrapped it before


def blocks(module: nn.Module, traits: Traits) -> Iterator[nn.Module]:
    """The blocks of all stacks, in the order they run."""
    for path in traits.stacks:
        yield from module.get_submodule(path).children()


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    inner = block.__dict__[_INNER]
    if not torch.is_grad_enabled():
        return inner(*args, **kwargs)
    # Not the re-entrant kind: that one needs an input which requires a gradient, and a frozen
    # network with adapters inside has none.
    return checkpoint(inner, *args, use_reentrant=False, **kwargs)
