"""`--vram`: the policy that a command runs with, and which batch is tried first."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from musubi.config.memory import check_full, dit_policy, encoder_policies
from musubi.config.options import Options
from musubi.config.plan import PlanConfig, as_plan
from musubi.config.sizes import parse_bytes
from musubi.errors import ConfigError
from musubi.estimate import cards
from musubi.estimate.cards import Card
from musubi.estimate.sizes import weights_of
from musubi.memory.apply import check_swapped
from musubi.plan import advice, words
from musubi.plan.choose import ChosenPolicy, choose, needed, stream_counts
from musubi.plan.machine import device_bytes, host_room
from musubi.plan.networks import text
from musubi.plan.previews import PreviewNeeds
from musubi.plan.workload import Bucket, Network, Workload, largest, networks_of, workload
from musubi.plugin import Architecture, Component, Report
from musubi.plugin.policy import Policy


class PlannedItem(Protocol):
    """What the planner reads from an item of a training set."""

    @property
    def dataset(self) -> int:
        """Number of its dataset."""
        ...

    @property
    def bucket(self) -> tuple[Any, ...]:
        """Width, height and frames, and what else must be equal in a batch."""
        ...

    @property
    def batch_size(self) -> int:
        """Most items of a batch."""
        ...

    @property
    def repeats(self) -> int:
        """How often an epoch visits it."""
        ...


def policy_for(
    config: Options,
    architecture: Architecture,
    *,
    trains: bool,
    buckets: Sequence[Bucket] | Callable[[], Sequence[Bucket]],
    report: Report,
) -> Policy:
    """The DiT's memory policy: from the options, and completed by the planner if `--vram` is given.

    Args:
        config: The options of `train` or `generate`.
        architecture: The architecture of the DiT.
        trains: Whether the command is `train`.
        buckets: A function that returns the sizes of the dataset; called only if needed.
        report: Shows the chosen settings.

    Raises:
        ConfigError: Nothing fits, or options contradict each other.
    """
    config = as_plan(config, architecture)
    asked = given(config, architecture.dit, trains=trains)
    if config.vram is None or config.latent_path:  # which runs no DiT
        return asked
    sizes = buckets() if callable(buckets) else buckets
    about = workload(config, architecture, trains=trains, report=report, buckets=sizes)
    check(config, about, asked)
    chosen = fitting(config, about, cards.of_device())
    flags = words.settings(chosen.policy, architecture.dit, trains=trains)
    report.note(
        f"--vram {config.vram}: {flags}. {words.gib(chosen.estimate.device)} GiB are expected at "
        f"{about.buckets[0]}, and {words.gib(chosen.estimate.host)} GiB of host memory."
        f"{decided_by_host(config, chosen)}"
    )
    drawn = PreviewNeeds.of(about)
    if drawn is not None:
        most = max(needed(found) for found in drawn(chosen.policy))
        if most > device_bytes(config.vram):
            report.warn(
                f"Previews at {drawn.buckets[0]} need a card with {words.gib(most)} GiB free, under "
                f"these settings: they will fail, and training goes on. Ask for smaller ones in "
                f"--sample_prompts. {advice.for_vae(architecture, about.options, 'train')}"
            )
    return chosen.policy


def decided_by_host(config: PlanConfig, chosen: ChosenPolicy) -> str:
    """A sentence that says that host memory decided the settings; empty if it did not."""
    if chosen.ram is None:
        return ""
    if config.ram is not None:
        return f" Host memory decided: with more than --ram {config.ram} they would be faster."
    return (
        f" Host memory decided: {words.gib(chosen.ram)} GiB can be used here; "
        "--ram gives another amount."
    )


def encoders_for(
    config: Options, architecture: Architecture, networks: Mapping[str, Network] | None = None
) -> dict[str, Policy]:
    """Memory policies of the other networks, from the options. With `--vram`, as many blocks of
    each text encoder are streamed as needed to fit.

    Args:
        config: The options of any command that has them.
        architecture: Whose networks.
        networks: The networks whose size is known.

    Raises:
        ConfigError: `--vram` is no size.
    """
    found = encoder_policies(config, architecture)
    config = as_plan(config, architecture)
    if config.vram is None:
        return found
    room = device_bytes(config.vram)
    known = networks_of(config, architecture) if networks is None else networks
    for name, network in known.items():
        policy = found.get(name, Policy())
        if network.component.role != "text" or any(policy.streamed):
            continue
        swapped = _fewest(architecture, network, policy, room)
        if swapped:
            found[name] = replace(policy, streamed=swapped)
    return found


def _fewest(
    architecture: Architecture, network: Network, policy: Policy, room: int
) -> tuple[int, ...]:
    """The smallest number of blocks of a text encoder to stream so that it fits; nearly all if none
    is enough.
    """
    component = network.component
    sizes = weights_of(component, network.numbers, dtype=network.dtype, storage=policy.storage)
    counts = stream_counts(component, [len(stack) for stack in sizes.blocks])
    whole = text(architecture, network, policy, None)
    for streamed in counts:
        saved = sizes.total - sizes.placed(streamed)[0]
        if needed(replace(whole, device=whole.device - saved)) <= room:
            return streamed
    return counts[-1]


def fitting(
    config: Options, about: Workload, card: Card | None, *, here: bool = True
) -> ChosenPolicy:
    """The fastest settings that fit `--vram` and `--ram` at the largest bucket.

    Memory options that the user gave stay as they are.

    Args:
        config: The options.
        about: The workload.
        card: Decides what is fast.
        here: The command runs on this computer: without `--ram`, free host memory is the limit.

    Raises:
        ConfigError: Nothing fits, or a size cannot be read.
    """
    config = as_plan(config, about.architecture)
    assert config.vram is not None
    policy = given(config, about.architecture.dit, trains=about.trains)
    room = host_room() if here else None
    find = functools.partial(
        choose,
        about.case,
        vram=device_bytes(config.vram),
        ram=room if config.ram is None else parse_bytes(config.ram),
        ram_is="--ram allows" if config.ram else "what this computer has free allows",
        optimizer=about.optimizer,
        card=card,
        fixed=decided(config, policy),
        may_compile=may_compile(),
        # The version compiled for the second size works for all others.
        steps=None if about.trains else about.steps / min(len(about.buckets), 2),
    )
    drawn = PreviewNeeds.of(about)
    if drawn is not None:
        try:
            return find(beside=drawn)
        except ConfigError:  # failing previews are only reported, so they need not fit
            pass
    return find()


def given(config: PlanConfig, dit: Component, *, trains: bool) -> Policy:
    """The DiT's policy from the options alone; options that only `train` has are ignored for
    generation.

    Raises:
        ConfigError: They contradict each other or the network.
    """
    policy = dit_policy(config, dit)
    if trains:
        return policy
    return replace(
        policy,
        recompute="none",
        offload_activations=False,
        offload_8bit=False,
        ffn_chunks=1,
        attention_chunks=1,
        compile=bool(config.compile),
    )


def check(config: PlanConfig, about: Workload, policy: Policy) -> None:
    """Refuse options that the command itself would refuse for this network.

    Args:
        config: The options.
        about: The planned workload.
        policy: The DiT's policy from the options.

    Raises:
        ConfigError: Options contradict each other or the network.
    """
    if about.trains and config.full:
        check_full(config)
    dit, case = about.architecture.dit, about.case
    stacks = weights_of(dit, case.numbers, dtype=case.dtype).blocks
    for name, stack, count in zip(dit.traits.stacks, stacks, policy.streamed, strict=False):
        check_swapped(name, count, len(stack))


def may_compile() -> bool:
    """Whether blocks can be compiled here; without a CUDA device, the plan is for one, so they can."""
    import importlib.util

    import torch

    return not torch.cuda.is_available() or importlib.util.find_spec("triton") is not None


def decided(config: PlanConfig, policy: Policy) -> dict[str, Any]:
    """The fields of the policy that the user's options set and that the planner must not change."""
    fixed: dict[str, Any] = {}
    if policy.storage != "native":
        fixed |= {"storage": policy.storage, "quantized_matmul": policy.quantized_matmul}
    if config.blocks_to_swap is not None:
        fixed["streamed"] = policy.streamed
    if policy.recompute != "none" or config.recompute is not None:
        fixed["recompute"] = policy.recompute
    if policy.offload_activations:
        fixed |= {"offload_activations": True, "offload_8bit": policy.offload_8bit}
    if policy.ffn_chunks > 1:
        fixed["ffn_chunks"] = policy.ffn_chunks
    if policy.attention_chunks > 1:
        fixed["attention_chunks"] = policy.attention_chunks
    if policy.compile or config.compile is not None:
        fixed["compile"] = policy.compile
    return fixed


def buckets_of(items: Sequence[PlannedItem]) -> tuple[Bucket, ...]:
    """The sizes in a training set, each with its largest batch."""
    counts: Counter[tuple[int, Hashable, int]] = Counter()
    for item in items:
        counts[item.dataset, item.bucket, item.batch_size] += item.repeats
    made: dict[Bucket, None] = {}
    for (_, bucket, size), count in counts.items():
        width, height, frames = bucket[:3]  # type: ignore[index]
        made[Bucket(width, height, max(1, frames), min(size, count))] = None
    return tuple(made)


def largest_batch(items: Sequence[PlannedItem]) -> list[int]:
    """Indices of the batch that needs the most memory: tried before an epoch is spent.

    Raises:
        ValueError: There are no items.
    """
    most = largest(buckets_of(items))
    size = (most.width, most.height, most.frames)
    homes: dict[tuple[int, Hashable], list[int]] = {}
    for index, item in enumerate(items):
        width, height, frames = item.bucket[:3]
        if (width, height, max(1, frames)) == size:
            copies = [index] * item.repeats
            homes.setdefault((item.dataset, item.bucket), []).extend(copies)
    found = max(homes.values(), key=lambda home: min(len(home), items[home[0]].batch_size))
    return found[: items[found[0]].batch_size]
