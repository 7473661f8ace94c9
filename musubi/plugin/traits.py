"""What a network declares about its modules, so that memory and LoRA need not know its class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


def named(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


@dataclass(frozen=True, kw_only=True)
class LoraTargets:
    """Which linear layers take an adapter: full-match regular expressions on dotted module names.

    Args:
        include: A layer is a target when one of these matches its whole name.
        exclude: And none of these does; a user's include patterns bring a layer back.
        groups: Named subsets a user may choose, such as "attention" or "mlp".
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
    """The facts a policy needs about one network.

    Args:
        stacks: Dotted paths of the `ModuleList`s whose blocks run once each, in order. These are
            what can be recomputed, streamed and compiled. A block takes tensors and returns
            tensors, and keeps no state between calls.
        fp32: Patterns of parameter names (full match) that stay in float32 whatever was asked.
        quantize: Patterns of parameter names (full match) that 8-bit storage may hold.
        per_token: Patterns of module names (full match) that take tokens B L D and look at each
            alone: feed-forward layers, which can be computed in slices.
        swap: How many blocks of each stack `--blocks_to_swap N` means, where there are several;
            None: all of the first.
        lora: The layers that take an adapter, or None when the network is never adapted.
    """

    stacks: tuple[str, ...] = ()
    fp32: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()
    per_token: tuple[str, ...] = ()
    swap: Callable[[int], tuple[int, ...]] | None = None
    lora: LoraTargets | None = None
