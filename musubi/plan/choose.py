"""Choose the fastest settings that fit a card; settings that do not change the results come first.

Settings are tried in the order of their cost: no recomputation, then everything but attention, then
whole blocks; for each of these, as few streamed blocks as possible, with activations on the device
and then on the host; if none of that fits, feed-forward layers in chunks. If there are few steps,
blocks are compiled only if that saves more time than it takes, or if nothing fits without it.
Weights in 8 bits change the numbers a little: they are used if no exact settings fit, or if exact
settings would wait for copies from the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from musubi.errors import ConfigError
from musubi.estimate.cards import CARDS, Card
from musubi.estimate.record import Case
from musubi.estimate.sizes import weights_of
from musubi.estimate.step import Estimate, Optimizer, estimate
from musubi.plugin.architecture import Component
from musubi.plugin.policy import Policy, Recompute, Storage

# Memory that an allocator cannot use, and memory of libraries that PyTorch does not see.
MARGIN_PART = 0.05
MARGIN = 256 << 20
# Exact settings may be this much slower than those in 8 bits.
_WORTH = 1.15
SLICES = 4
# Kinds of recomputation; each keeps less memory than the one before.
_AGAIN: tuple[Recompute, ...] = ("none", "attention", "blocks")
# Seconds that compiling takes, for one size of video: the first steps of full-size models took 15 to
# 60 s longer on one H200, training, and about 15 to 25 s generating; other hosts are slower.
COMPILING = 30.0


Beside = Callable[[Policy], Iterable[Estimate]]


@dataclass(frozen=True, kw_only=True)
class ChosenPolicy:
    """Settings and their estimate.

    Attributes:
        policy: The settings.
        estimate: The memory and time that they need.
        ram: Bytes of host memory, if host memory decided the settings; else None.
    """

    policy: Policy
    estimate: Estimate
    ram: int | None = None


def needed(found: Estimate) -> int:
    """The size of a card on which that estimate fits."""
    return int(found.device * (1 + MARGIN_PART)) + MARGIN


def choose(  # noqa: PLR0913 - each is another limit or another fact
    case: Case,
    *,
    vram: int,
    ram: int | None = None,
    ram_is: str = "--ram allows",
    optimizer: Optimizer | None = None,
    card: Card | None = None,
    fixed: Mapping[str, Any] | None = None,
    may_compile: bool = True,
    steps: float | None = None,
    beside: Beside | None = None,
) -> ChosenPolicy:
    """The fastest settings that fit.

    Args:
        case: The network and its largest input.
        vram: Bytes of device memory; a margin of 5% and 256 MiB is left free.
        ram: Bytes of host memory, everything of the process included; None: any amount.
        ram_is: Words for messages that say where `ram` comes from.
        optimizer: The optimizer of a training step.
        card: The card, whose speeds decide what is fast; a common one when not given.
        fixed: Fields of `Policy` that the user has set.
        may_compile: Whether blocks can be compiled here.
        steps: How many steps run for each compilation; None: so many that compiling always pays.
        beside: What else must fit with the same policy, such as previews; None: nothing.

    Raises:
        ConfigError: Nothing fits; the message says what comes nearest.
    """
    search = _Search(
        case,
        vram,
        None,
        optimizer,
        card or CARDS[0],
        dict(fixed or {}),
        may_compile,
        steps,
        beside,
        ram_is,
    )
    found = search.best()
    if ram is None or found.estimate.host <= ram:
        return found
    # If the fastest of all is among those that need less memory, it is the fastest of them too.
    return replace(replace(search, ram=ram).best(), ram=ram)


@dataclass
class _Search:
    case: Case
    vram: int
    ram: int | None
    optimizer: Optimizer | None
    card: Card
    fixed: dict[str, Any]
    may_compile: bool
    steps: float | None
    beside: Beside | None
    ram_is: str

    def best(self) -> ChosenPolicy:
        found: list[ChosenPolicy] = []
        for storage, matmul in self._storages():
            fitting: list[ChosenPolicy] = []
            for chunks in self._chunks():
                fitting = fitting or self._that_fit(list(self._modes(storage, matmul, chunks)))
            if fitting:
                found.append(min(fitting, key=self._time))
            exact = [c for c in found if c.policy.storage == "native"]
            if exact and not self._waits(exact[0]):
                return exact[0]
        if not found:
            raise self._nothing()
        exact = [c for c in found if c.policy.storage == "native"]
        fastest = min(found, key=self._time)
        if exact and self._time(exact[0]) <= _WORTH * self._time(fastest):
            return exact[0]
        return fastest

    def _that_fit(self, modes: list[Policy]) -> list[ChosenPolicy]:
        """The settings that fit, in the same order. If the smallest does not fit, the others are not tried."""
        found: dict[Policy, ChosenPolicy] = {}
        hopeless: set[tuple[bool, bool]] = set()
        for policy in sorted(modes, key=lambda p: -_AGAIN.index(p.recompute)):
            kind = (policy.offload_activations, policy.compile)
            if kind in hopeless:
                continue
            one = self._fewest(policy)
            if one is None:
                hopeless.add(kind)
            elif self.ram is None or one.estimate.host <= self.ram:
                found[policy] = one
        return [found[policy] for policy in modes if policy in found]

    def _storages(self) -> Iterator[tuple[Storage, bool]]:
        if "storage" in self.fixed:
            yield self.fixed["storage"], bool(self.fixed.get("quantized_matmul", False))
            return
        yield "native", False
        if self.case.architecture.dit.traits.quantize and self._frozen():
            yield "fp8_scaled", False

    def _chunks(self) -> tuple[int, ...]:
        """In how many chunks feed-forward layers are tried: in one, then in several."""
        if "ffn_chunks" in self.fixed:
            return (self.fixed["ffn_chunks"],)
        if self.case.attach is None or not self.case.architecture.dit.traits.per_token:
            return (1,)
        return (1, SLICES)

    def _modes(self, storage: Storage, matmul: bool, chunks: int) -> Iterator[Policy]:
        compiled: tuple[bool, ...] = (self.may_compile,)
        if self.steps is not None and self.may_compile:
            compiled = (False, True)
        if "compile" in self.fixed:
            compiled = (self.fixed["compile"],)
        again = _AGAIN
        if self.case.attach is None:
            again = ("none",)
        if "recompute" in self.fixed:
            again = (self.fixed["recompute"],)
        away = (False, True) if self.case.attach is not None else (False,)
        if "offload_activations" in self.fixed:
            away = (self.fixed["offload_activations"],)
        for offload, recompute, compiles in itertools.product(away, again, compiled):
            yield Policy(
                storage=storage,
                quantized_matmul=matmul,
                recompute=recompute,
                offload_activations=offload,
                offload_8bit=self.fixed.get("offload_8bit", False),
                ffn_chunks=chunks,
                compile=compiles,
            )

    def _fewest(self, policy: Policy) -> ChosenPolicy | None:
        """The policy with as few streamed blocks as needed to fit; None if it does not fit."""
        counts = self._counts(policy)
        low, high = 0, len(counts) - 1
        most = self._with(policy, counts[high])
        if not self._fits_device(most):
            return None
        while low < high:
            middle = (low + high) // 2
            if self._fits_device(self._with(policy, counts[middle])):
                high = middle
            else:
                low = middle + 1
        return self._with(policy, counts[low])

    def _counts(self, policy: Policy) -> list[tuple[int, ...]]:
        if "streamed" in self.fixed:
            return [tuple(self.fixed["streamed"])]
        if not self._frozen():
            return [()]
        dit = self.case.architecture.dit
        sizes = weights_of(dit, self.case.numbers, dtype=self.case.dtype, storage=policy.storage)
        return stream_counts(dit, [len(stack) for stack in sizes.blocks])

    def _frozen(self) -> bool:
        """Whether the network's own weights are not trained: only then can they be streamed or
        stored in 8 bits.
        """
        return not self.case.whole

    def _with(self, policy: Policy, streamed: tuple[int, ...]) -> ChosenPolicy:
        policy = replace(policy, streamed=streamed)
        found = estimate(self.case, policy, optimizer=self.optimizer, card=self.card)
        return ChosenPolicy(policy=policy, estimate=found)

    def _fits_device(self, one: ChosenPolicy) -> bool:
        if needed(one.estimate) > self.vram:
            return False
        others = () if self.beside is None else self.beside(one.policy)
        return all(needed(other) <= self.vram for other in others)

    def _time(self, one: ChosenPolicy) -> float:
        """Seconds of one step; if the number of steps is known, of all steps and of compiling."""
        seconds = one.estimate.seconds or 0.0
        if self.steps is None:
            return seconds
        return self.steps * seconds + (COMPILING if one.policy.compile else 0.0)

    def _waits(self, one: ChosenPolicy) -> bool:
        """Whether the step waits for copies from the host."""
        free = self._with(replace(one.policy, offload_activations=False), ())
        return (one.estimate.seconds or 0.0) > _WORTH * (free.estimate.seconds or 0.0)

    def _nothing(self) -> ConfigError:
        tried = [
            policy
            for storage, matmul in self._storages()
            for chunks in self._chunks()
            for policy in self._modes(storage, matmul, chunks)
        ]
        size = f"{self.case.width}x{self.case.height}, {self.case.frames} frames"
        small = [one for policy in tried if (one := self._fewest(policy))]
        if small and self.ram is not None:
            host = min(one.estimate.host for one in small)
            return ConfigError(
                f"{_gib(self.vram)} of device memory would do for {size}, with "
                f"{_gib(host)} of host memory, and {self.ram_is} {_gib(self.ram)}.",
                fix="Give more --ram or more --vram, or take smaller or shorter videos.",
            )
        leanest = [self._with(policy, self._counts(policy)[-1]) for policy in tried]
        least = min(leanest, key=lambda one: one.estimate.device)
        what = least.estimate.dominant
        return ConfigError(
            f"Nothing fits {_gib(self.vram)} at {size}: the least that is possible needs a card of "
            f"{_gib(needed(least.estimate))}, most of it for {what}.",
            fix="Use smaller or shorter videos, "
            f"{'a smaller batch, ' if self.case.batch > 1 else ''}or more memory.",
        )


def stream_counts(component: Component, depths: list[int]) -> list[tuple[int, ...]]:
    """How many blocks of each stack may be streamed, from none to as many as there are."""
    counts: list[tuple[int, ...]] = [()]
    swap = component.traits.swap
    for number in range(1, sum(depths) + 1):
        streamed = (number,) if swap is None else tuple(swap(number))
        if any(n > depth for n, depth in zip(streamed, depths, strict=False)):
            break
        counts.append(streamed)
    return counts


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
