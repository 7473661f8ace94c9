"""What a network declares about its modules, so that memory and LoRA need not know its class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


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
class LoraNames:
    """Names of LoRA layers that another program loads.

    Only what does not follow from the dialects is declared. These do: ComfyUI takes
    `diffusion_model.` with the original names, and that and `lora_unet_` with its own, those of the
    dialect "comfyui"; diffusers takes `transformer.` with its own, those of the dialect "diffusers".

    Args:
        program: "ComfyUI" or "diffusers".
        prefix: What stands before a layer's name; behind `lora_unet_` its dots are underscores.
        dialect: The dialect whose names follow; ours when empty.
        down: What the first matrix may be called: "lora_A", "lora_down".
        alpha: Alpha beside a pair is read; must be there; or makes the program refuse the file.
        demands: With "known", the program refuses a file that has other names as well; with "all",
            also one that lacks a target layer in some block.
    """

    program: Literal["ComfyUI", "diffusers"]
    prefix: str
    dialect: str = ""
    down: tuple[str, ...] = ("lora_A", "lora_down")
    alpha: Literal["read", "needed", "refused"] = "read"
    demands: Literal["", "known", "all"] = ""


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
        tokenwise: Patterns of module names (full match) that take tokens B L D and look at each
            alone: feed-forward layers, which can be computed in slices.
        swap: How many blocks of each stack `--blocks_to_swap N` means, where there are several;
            None: all of the first.
        lora: The layers that take an adapter, or None when the network is never adapted.
        lora_names: What other programs load, beyond what follows from the dialects.
    """

    stacks: tuple[str, ...] = ()
    fp32: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()
    tokenwise: tuple[str, ...] = ()
    swap: Callable[[int], tuple[int, ...]] | None = None
    lora: LoraTargets | None = None
    lora_names: tuple[LoraNames, ...] = ()
