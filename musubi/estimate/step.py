"""Estimate a step without running it: peak bytes on the device, bytes on the host, seconds.

The weights are counted exactly, from their shapes. Activations are recorded from a step of the
network in shapes only, two blocks a stack (`estimate.record`), and put together for all blocks as the
policy would: `estimate.figures` holds the pieces, this module adds them up.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from musubi.estimate import optimizers
from musubi.estimate.cards import Card, started
from musubi.estimate.figures import Figures, Work, figures
from musubi.estimate.record import DEPTH, Case, record
from musubi.estimate.sizes import weights_of
from musubi.estimate.trace import Trace
from musubi.memory.packed import PACKED
from musubi.plugin.policy import Policy
from musubi.weights.meta import on_meta

# Work space of the libraries that multiply, held by PyTorch.
LIBRARIES = 64 << 20
# Python, PyTorch and the driver, on the host.
PROCESS = int(2.5 * 2**30)
# Seconds in which the host enqueues a compiled block's work, forward and backward; measured where
# blocks are so small that the device waits for it.
_ENQUEUED = 0.006


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one phase needs.

    Attributes:
        device: Peak bytes allocated on the device.
        host: Peak bytes of host memory, the page-locked ones included.
        pinned: Page-locked bytes.
        seconds: For one step; None where no card is known.
        parts: What the device's bytes are at the peak, largest first.
    """

    device: int
    host: int
    pinned: int
    seconds: float | None = None
    parts: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def dominant(self) -> str:
        """The largest part."""
        return next(iter(self.parts), "")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer of a training step.

    Args:
        name: `--optimizer_type`.
        offload: The optimizer and its states are on the host.
        average: An average of the weights lies beside its states, in float32.
    """

    name: str = "adamw"
    offload: bool = False
    average: bool = False


def estimate(
    case: Case,
    policy: Policy,
    *,
    optimizer: Optimizer | None = None,
    card: Card | None = None,
) -> Estimate:
    """Peak memory and time of a training step (with `case.attach`) or of a denoising step.

    Args:
        case: What is run.
        policy: How.
        optimizer: Of a training step; AdamW on the device when not given.
        card: Decides the seconds.

    Raises:
        ConfigError: No layer takes what is to be trained.
    """
    optimizer = optimizer or Optimizer()
    pieces = _figures(case, policy)
    weights = weights_of(
        case.architecture.dit, case.numbers, dtype=case.dtype, storage=policy.storage
    )
    there, away = weights.placed(policy.streamed)
    trained, fresh = _trained(case)
    states = optimizers.state_bytes(optimizer.name, trained) if trained else 0
    states += 4 * sum(trained) if optimizer.average else 0
    gradients = 4 * sum(trained)
    others = case.experts - 1
    steady = {
        "weights": there + LIBRARIES,
        "what is trained": (others + 1) * (4 * fresh + (0 if optimizer.offload else states)),
    }
    if others and case.attach is not None and not case.parked:
        steady["the denoisers that rest"] = others * there
    depths = [len(stack) for stack in weights.blocks]
    activations = _timeline(pieces, depths, policy, gradients if optimizer.offload else 0)
    if trained and not optimizer.offload:
        scratch = optimizers.scratch_bytes(optimizer.name, trained)
        stepping = {"gradients and the optimizer's step": gradients + scratch}
        activations = max(activations, stepping, key=lambda found: sum(found.values()))
    if policy.compile and policy.storage != "native":
        # Turned for a product in 8 bits, or expanded for one in 16: one matrix at a time.
        steady["a copy of an 8-bit matrix"] = weights.matrix * (1 if policy.quantized_matmul else 2)
    parts = {**steady, **activations}
    parked = sum(n * s.parked for n, s in zip(depths, pieces.stacks, strict=True))
    parked = int(parked * (PACKED if policy.offload_8bit else 1))
    pinned = away + (parked if policy.offload_activations else 0)
    on_host = (others + 1) * (states + 2 * gradients) if optimizer.offload else 0
    if case.attach is not None or case.parked:
        pinned += others * (away + (there if case.parked else 0))
    return Estimate(
        device=sum(parts.values()),
        host=PROCESS + pinned + on_host,
        pinned=pinned,
        seconds=None if card is None else _seconds(case, pieces, depths, policy, card, away),
        parts=dict(sorted((p for p in parts.items() if p[1]), key=lambda p: -p[1])),
    )


def _timeline(pieces: Figures, depths: list[int], policy: Policy, taken: int = 0) -> dict[str, int]:
    """The most that activations and gradients need at once, as parts with names.

    Args:
        pieces: The step's figures.
        depths: Blocks of each stack.
        policy: How it runs.
        taken: Bytes of gradients that leave the device as soon as they are whole.
    """
    away = policy.offload_activations
    best = {"work before the blocks": pieces.before}

    def see(kept: int, work: int, what: str) -> None:
        nonlocal best
        if kept + work > sum(best.values()):
            best = {"kept for the backward pass": kept, what: work}
            if not pieces.trains:
                best = {"activations": kept + work}

    live = pieces.start
    for count, stack in zip(depths, pieces.stacks, strict=True):
        if not pieces.trains:  # nothing accumulates: every block is like the one that was run
            see(stack.start, stack.forward, "activations")
            continue
        grows = stack.kept - (stack.parked if away else 0)
        see(live + max(0, count - 1) * grows, stack.forward, "one block's forward pass")
        live += count * grows + stack.joint
    if not pieces.trains:
        see(pieces.done, pieces.after, "activations")
        return best
    see(live, pieces.after, "work after the blocks")
    live += pieces.tail
    see(live, pieces.turn, "work after the blocks")
    live += pieces.turned
    for count, stack in zip(reversed(depths), reversed(pieces.stacks), strict=True):
        live -= stack.joint
        # Those of the block that runs, and of the next.
        coming = int((1 + (PACKED if policy.offload_8bit else 1)) * stack.parked) if away else 0
        falls = stack.given_back - (stack.parked if away else 0) + taken // max(1, sum(depths))
        for position in (0, count - 1):
            see(live - position * falls + coming, stack.backward, "one block's backward pass")
        live -= count * falls
    return best


def _seconds(
    case: Case, pieces: Figures, depths: list[int], policy: Policy, card: Card, away: int
) -> float:
    work: Work = pieces.work
    for count, stack in zip(depths, pieces.stacks, strict=True):
        work = work.plus(stack.work, count)
    passes = 2 if pieces.trains else 1
    moved = passes * away
    if policy.offload_activations:
        parked = sum(n * s.parked for n, s in zip(depths, pieces.stacks, strict=True))
        moved += parked * (PACKED if policy.offload_8bit else 1)
    # Compiled blocks are not known to start sooner, so that small steps do not speak for compiling.
    host = sum(depths) * _ENQUEUED if policy.compile and pieces.trains else started(work)
    one = max(card.seconds(work), moved / card.link, host)
    return one if pieces.trains else case.calls * one


def _key(case: Case) -> Hashable:
    return (
        id(case.architecture),
        case.task.name,
        _numbers(case),
        (case.width, case.height, case.frames, case.batch),
        (case.dtype, case.compute, case.attach),
        tuple((k, str(v)) for k, v in sorted(case.options.items())),
    )


def _numbers(case: Case) -> Hashable:
    return tuple((k, str(v)) for k, v in sorted(case.numbers.items()))


# Recordings of this process: (case, how it is stored, what is computed again) → recording.
_traces: dict[Hashable, Trace] = {}
_attached: dict[Hashable, tuple[list[int], int]] = {}


def _figures(case: Case, policy: Policy) -> Figures:
    again = policy.recompute if case.attach is not None else "none"
    sliced = (policy.ffn_chunks, policy.compile) if policy.ffn_chunks > 1 else ()
    parts = policy.attention_chunks if case.attach is not None else 1
    stored = (policy.storage, policy.quantized_matmul)
    key = (_key(case), stored, again, sliced, parts, policy.compile)
    if key not in _traces:
        _traces[key] = record(case, policy)
    return _read(key, _depths(case), policy.compile, policy.ffn_chunks > 1)


@functools.lru_cache(maxsize=256)
def _read(key: Hashable, depths: tuple[int, ...], compiled: bool, sliced: bool) -> Figures:
    return figures(_traces[key], depths, compiled=compiled, sliced=sliced)


def _depths(case: Case) -> tuple[int, ...]:
    weights = weights_of(case.architecture.dit, case.numbers, dtype=case.dtype)
    return tuple(min(DEPTH, len(stack)) for stack in weights.blocks)


def _trained(case: Case) -> tuple[list[int], int]:
    """Numbers in each trained tensor, and how many are not the network's own."""
    if case.attach is None:
        return [], 0
    key = (id(case.architecture), _numbers(case), case.dtype, case.attach)
    if key not in _attached:
        module = on_meta(case.architecture.dit, case.numbers, case.dtype)
        own = {id(p) for p in module.parameters()}
        parameters = list(case.attach(module))
        fresh = sum(p.numel() for p in parameters if id(p) not in own)
        _attached[key] = ([p.numel() for p in parameters], fresh)
    return _attached[key]
