"""A policy as the flags of a command."""

from __future__ import annotations

from musubi.plugin.architecture import Component
from musubi.plugin.policy import Policy


def flags(policy: Policy, component: Component, *, trains: bool) -> list[str]:
    """The options that ask for this policy, ready to copy.

    Args:
        policy: Of the DiT.
        component: The DiT.
        trains: Those of `train`; else those of `generate`.
    """
    said: list[str] = []
    if policy.storage != "kept":
        said.append("--fp8_base" if trains else "--fp8")
        if policy.storage == "fp8_scaled":
            said.append("--fp8_scaled")
    if policy.products:
        said.append("--fp8_fast")
    count = swapped(policy, component)
    if count:
        said.append(f"--blocks_to_swap {count}")
    if trains:
        said += {
            "none": [],
            "attention": ["--recompute attention"],
            "blocks": ["--gradient_checkpointing"],
        }[policy.recompute]
        if policy.offload_activations:
            said.append("--gradient_checkpointing_cpu_offload")
            if policy.recompute == "none":
                said.append("--recompute none")
    if policy.slices > 1:
        said.append(f"--ffn_slices {policy.slices}")
    if policy.compile:
        said.append("--compile")
    return said


def swapped(policy: Policy, component: Component) -> int:
    """The number that `--blocks_to_swap` takes for it."""
    if not any(policy.streamed):
        return 0
    swap = component.traits.swap
    if swap is None:
        return policy.streamed[0]
    number = 1
    while tuple(swap(number)) != policy.streamed and number < sum(policy.streamed):
        number += 1
    return number


def settings(policy: Policy, component: Component, *, trains: bool) -> str:
    """The flags in one line; "no flags" when there are none."""
    return " ".join(flags(policy, component, trains=trains)) or "no flags"


def gib(size: float) -> str:
    """Bytes as GiB with one digit."""
    return f"{size / 2**30:.1f}"
