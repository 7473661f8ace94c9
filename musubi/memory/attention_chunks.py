"""Chunks of heads: the backward pass of attention takes them one after the other; see `nn.attention_parts`."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from musubi.memory.blocks import blocks, wrap
from musubi.nn.attention import in_parts
from musubi.plugin.traits import Traits

NAME = "attention_chunks"


def apply(module: nn.Module, traits: Traits, count: int) -> None:
    """Let attention inside the blocks of `traits.stacks` take its heads in `count` parts, backward."""
    for block in blocks(module, traits):
        wrap(block, NAME, functools.partial(_around, count=count))


def _around(block: nn.Module, inner: Any, *args: Any, count: int, **kwargs: Any) -> Any:
    with in_parts(count):
        return inner(*args, **kwargs)
