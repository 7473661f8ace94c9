"""Recompute: keep only the inputs of each block, and run the block again in the backward pass.

Chen et al., https://arxiv.org/abs/1604.06174. With "attention" the outputs of attention over many
keys are kept as well: they cost the most to compute again, and are no larger than the input.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from musubi.memory.blocks import blocks, unwrap, wrap
from musubi.nn import attention_parts
from musubi.plugin.traits import Traits

NAME = "recompute"
# Attention over a text of a few hundred tokens is cheap: its output is not worth its memory.
_FEW_KEYS = 4
_IN_PARTS = attention_parts.OPERATOR


def apply(module: nn.Module, traits: Traits, *, keep_attention: bool = False) -> int:
    """Make every block of `traits.stacks` recompute its activations in the backward pass.

    Names, parameters and numbers stay as they are: losses and gradients are bitwise the same, and
    without gradients (a preview, validation) the blocks run as before. Applying it twice is once.

    Args:
        module: The network.
        traits: Its traits; a stack is the dotted path of a `ModuleList`.
        keep_attention: Keep what attention gave.

    Returns:
        The number of blocks it was applied to.
    """
    around = _keeping_attention if keep_attention else _keeping_nothing
    count = 0
    for block in blocks(module, traits):
        wrap(block, NAME, around)
        count += 1
    return count


def remove(module: nn.Module, traits: Traits) -> None:
    """Undo `apply`."""
    for block in blocks(module, traits):
        unwrap(block, NAME)


def contexts() -> Any:
    """What `checkpoint` takes as `context_fn` to keep attention outputs."""
    return create_selective_checkpoint_contexts(_choose)


def _keeping_nothing(block: nn.Module, inner: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return inner(*args, **kwargs)
    # Not the re-entrant kind: that one needs an input which requires a gradient, and a frozen
    # network with adapters inside has none.
    return checkpoint(inner, *args, use_reentrant=False, **kwargs)


def _keeping_attention(block: nn.Module, inner: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return inner(*args, **kwargs)
    return checkpoint(inner, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _choose(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operator in _attention_operators() and len(args) > 1:
        tokens = 1 if operator is _IN_PARTS else -2
        queries, keys = args[0].shape[tokens], args[1].shape[tokens]
        if keys * _FEW_KEYS >= queries:
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _attention_operators() -> frozenset[Any]:
    """PyTorch's attention kernels, as far as this version has them."""
    names = (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    found = (getattr(torch.ops.aten, name, None) for name in names)
    return frozenset([_IN_PARTS, *(packet.default for packet in found if packet is not None)])
