"""Slices: layers that look at each token alone take the tokens a part at a time.

The hidden width of a feed-forward layer is several times the network's; of a long video it is the
largest tensor there is. In slices only a part of it exists at once, in the backward pass too.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from musubi.memory.blocks import wrap
from musubi.plugin.traits import Traits, named

NAME = "ffn_chunks"


def apply(module: nn.Module, traits: Traits, count: int, *, compiled: bool = False) -> int:
    """Let the modules that `traits.per_token` names take their tokens in `count` parts.

    Args:
        module: The network.
        traits: Its traits.
        count: How many parts.
        compiled: The blocks around them are compiled, and decide themselves what is computed again.

    Returns:
        The number of modules it was applied to.
    """
    wanted = [part for name, part in module.named_modules() if named(name, traits.per_token)]
    for part in wanted:
        wrap(part, NAME, functools.partial(_in_slices, count=count, compiled=compiled))
    return len(wanted)


def _in_slices(
    module: nn.Module, inner: Any, x: torch.Tensor, *, count: int, compiled: bool
) -> torch.Tensor:
    parts = x.chunk(count, dim=1)
    if compiled or not torch.is_grad_enabled():
        return torch.cat([inner(part) for part in parts], dim=1)
    # Inside a block that is computed again as a whole, too: or all parts would wait together.
    return torch.cat([checkpoint(inner, part, use_reentrant=False) for part in parts], dim=1)
