"""What a network declares about its modules, so that memory and LoRA code need not know its class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


def named(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


@dataclass(frozen=True, kw_only=True)
class LoraTargets:
    """Which linear layers take an adapter: full-match regular expressions on dotted module names.

    Args:
        include: A layer is a target when one of these matches its whole name.
        exclude: A layer is no target when one of these matches its whole name, unless a user's
            include patterns match it.
        groups: Named groups of layers that a user may choose, such as "attention" or "mlp".
    """

    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Memory settings that were measured to fit a card: options and their values."""

    name: str
    settings: Mapping[str, Any]
    measured: str


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a memory policy must know about one network.

    Args:
        stacks: Dotted paths of the `ModuleList`s whose blocks run once each, in order. These blocks
            can be recomputed, streamed and compiled. A block takes tensors, returns tensors, and
            keeps no state between calls.
        fp32: Patterns of names of parameters (full match) that always stay in float32.
        quantize: Patterns of names of parameters (full match) that may be stored in 8 bits.
        per_token: Patterns of names of modules (full match) that take tokens B L D and compute each
            token by itself: feed-forward layers, which can be computed in slices.
        swap: How many blocks of each stack `--blocks_to_swap N` means, if there are several stacks;
            None: N blocks of the first stack.
        lora: The layers that take an adapter, or None when the network is never adapted.
    """

    stacks: tuple[str, ...] = ()
    fp32: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()
    per_token: tuple[str, ...] = ()
    swap: Callable[[int], tuple[int, ...]] | None = None
    lora: LoraTargets | None = None
