"""A policy as the flags of a command."""

from __future__ import annotations

from collections.abc import Sequence

from musubi.plan.phases import Phase
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
    if policy.storage == "int8":
        said.append("--int8_fast" if policy.quantized_matmul else "--int8")
    elif policy.storage != "native":
        said.append("--fp8_base" if trains else "--fp8")
        if policy.storage == "fp8_scaled":
            said.append("--fp8_scaled")
        if policy.quantized_matmul:
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
            said += ["--offload_8bit"] if policy.offload_8bit else []
            if policy.recompute == "none":
                said.append("--recompute none")
    if policy.ffn_chunks > 1:
        said.append(f"--ffn_slices {policy.ffn_chunks}")
    if policy.attention_chunks > 1 and trains:
        said.append(f"--attention_slices {policy.attention_chunks}")
    if policy.compile:
        said.append("--compile")
    return said


def swapped(policy: Policy, component: Component) -> int:
    """The value of `--blocks_to_swap` for this policy."""
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


HEADS = ("phase", "size", "device GiB", "host GiB", "pinned GiB", "seconds", "mostly")


def table(found: Sequence[Phase]) -> list[tuple[str, ...]]:
    """The phases as rows for `HEADS`."""
    return [
        (
            phase.name,
            "" if phase.bucket is None else str(phase.bucket),
            gib(phase.estimate.device),
            gib(phase.estimate.host),
            gib(phase.estimate.pinned),
            "" if phase.estimate.seconds is None else f"{phase.estimate.seconds:.2f}",
            phase.estimate.dominant,
        )
        for phase in found
    ]


def plain(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as lines of text, for a message; columns without a word in them are left out."""
    used = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    lines = [[heads[i] for i in used], *[[row[i] for i in used] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(used))]
    shown = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([f"{title}:", *[f"  {line.rstrip()}" for line in shown]])
