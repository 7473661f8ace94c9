"""Advice for text encoders and VAEs that do not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from musubi.estimate.sizes import weights_of
from musubi.plan import networks, words
from musubi.plan.choose import needed, stream_counts
from musubi.plan.workload import Network
from musubi.plugin import Architecture
from musubi.plugin.option import Command
from musubi.plugin.policy import Policy

_CLOSE = "close other programs that use the GPU"


def for_text(architecture: Architecture, network: Network, policy: Policy, room: int | None) -> str:
    """The setting to change next for a text encoder, as a sentence; settings that do not change its
    output come first.

    Args:
        architecture: The architecture of the encoder.
        network: The encoder.
        policy: The current memory policy.
        room: Bytes of device memory; None: unknown, so the largest saving is chosen.
    """

    def need(changed: Policy) -> int:
        return needed(networks.text(architecture, network, changed, None))

    def streaming(kept: Policy) -> Policy:
        """Stream as few more blocks as are enough; if none is enough, stream all."""
        sizes = weights_of(component, network.numbers, dtype=network.dtype, storage=kept.storage)
        counts = stream_counts(component, [len(stack) for stack in sizes.blocks])
        more = [replace(kept, streamed=c) for c in counts if sum(c) > sum(kept.streamed)]
        fits = (p for p in more if room is not None and need(p) <= room)
        return next(fits, more[-1] if more else kept)

    component, now = network.component, need(policy)
    eight = replace(policy, storage="fp8_scaled") if component.fp8 else policy
    alone = [streaming(policy), eight if policy.storage == "native" else policy]
    enough = [p for p in alone if p != policy and room is not None and need(p) <= room]
    found = enough or [p for p in [*alone, streaming(alone[1])] if need(p) < 0.99 * now]
    if not found:
        return f"No setting of memory is left for the {component.name}: {_CLOSE}."
    found = found if enough else [min(found, key=need)]
    said = [
        f"{_flags(component.fp8, policy, p, words.swapped(p, component))} "
        f"({words.gib(need(p))} GiB are needed then)"
        for p in found
    ]
    return f"Add {', or '.join(said)}."


def _flags(fp8: str | None, old: Policy, new: Policy, swapped: int) -> str:
    flags = [f"--{fp8}"] if new.storage != old.storage else []
    return " ".join([*flags, *([f"--text_encoder_swap {swapped}"] if swapped else [])])


def for_vae(architecture: Architecture, options: Mapping[str, Any], command: Command) -> str:
    """The setting to change next for a VAE, as a sentence.

    Args:
        architecture: The architecture of the VAE.
        options: The current values of the architecture's own options.
        command: The command; only its options are named.
    """
    left = [
        f"--{o.name}" if o.saves is True else f"--{o.name} {o.saves}"
        for o in architecture.options
        if o.saves is not None and command in o.commands and not options.get(o.name)
    ]
    if not left:
        return f"Lower the size or the frames, or {_CLOSE}."
    more = f"; if that is not enough, {left[1]} too" if len(left) > 1 else ""
    return f"Add {left[0]}{more}."
