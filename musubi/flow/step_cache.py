"""MagCache: skip the blocks at some steps, and add their last residual again.

Ma et al. 2025, https://arxiv.org/abs/2506.09045. The residual of the blocks, what leaves them less
what entered, changes from step to step by a ratio of norms that hardly depends on the prompt. Which
steps can be left out follows from these ratios alone, before anything is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from musubi.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MagCache:
    """The options that decide which steps are skipped.

    Args:
        ratios: Measured norm of each step's residual over the one before, the first is 1; for any
            number of steps.
        retention: Share of the steps, from the first one, that are never skipped.
        threshold: The largest error that may add up before a step runs again.
        k: How many steps in a row may be skipped.
    """

    ratios: tuple[float, ...]
    retention: float = 0.2
    threshold: float = 0.24
    k: int = 6

    def __post_init__(self) -> None:
        if not self.ratios or any(ratio <= 0 for ratio in self.ratios):
            raise ConfigError(
                "The ratios of MagCache must be numbers above 0.",
                fix="Measure them with --magcache_calibration, and give what it prints.",
            )
        for name, value, most in (
            ("retention_ratio", self.retention, 1),
            ("threshold", self.threshold, None),
        ):
            if value < 0 or (most is not None and value > most):
                raise ConfigError(
                    f"--magcache_{name} {value:g} is not possible.",
                    fix="Give 0 to 1." if most else "Give 0 or more.",
                )
        if self.k < 0:
            raise ConfigError(f"--magcache_k {self.k} is not possible.", fix="Give 0 or more.")


def nearest(ratios: Sequence[float], steps: int) -> tuple[float, ...]:
    """The ratios for another number of steps: of each the nearest measured one.

    >>> nearest([1.0, 2.0, 3.0], 5)
    (1.0, 1.0, 2.0, 3.0, 3.0)
    """
    if steps == 1:
        return (ratios[-1],)
    scale = (len(ratios) - 1) / (steps - 1)
    return tuple(ratios[round(i * scale)] for i in range(steps))


def skipped(policy: MagCache, steps: int) -> tuple[bool, ...]:
    """For each step whether the blocks are left out. The last step always runs."""
    ratios = nearest(policy.ratios, steps)
    out = [False] * steps
    ratio, error, count = 1.0, 0.0, 0
    for i in range(max(int(policy.retention * steps), 1), steps - 1):
        ratio *= ratios[i]
        error += abs(1 - ratio)
        count += 1
        out[i] = error <= policy.threshold and count <= policy.k
        if not out[i]:
            ratio, error, count = 1.0, 0.0, 0
    return tuple(out)


class StepCache:
    """Runs a network's calls, or leaves out its blocks, as a schedule says.

    Each of the calls of guidance has a residual of its own. Blocks that are left out are not
    touched: no weight of them is moved or read.

    Args:
        network: The denoiser.
        stacks: Dotted paths of the lists whose blocks run once each, in order. The first argument of
            a block is the tokens of the video, and the first tokens of what the last block returns.
        schedule: As `skipped` makes it; empty: nothing is left out.
        measuring: Also note how residuals grow, for `ratios`.
    """

    def __init__(
        self,
        network: nn.Module,
        stacks: Sequence[str],
        schedule: Sequence[bool] = (),
        *,
        measuring: bool = False,
    ) -> None:
        self._network, self._schedule, self._measuring = network, schedule, measuring
        self._stacks = [
            path for path in stacks if len(list(network.get_submodule(path).children()))
        ]
        self._residuals: dict[Hashable, _Residual] = {}
        self._grown: dict[int, list[float]] = {}

    def start(self) -> None:
        """Forget all residuals: the next call belongs to another denoising loop."""
        self._residuals.clear()

    def run(self, key: Hashable, step: int, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `call` returns, which runs the network once.

        Args:
            key: Which of a step's calls it is.
            step: Number of the step.
            call: Runs the network.
        """
        before = self._residuals.get(key)
        if before is not None and step < len(self._schedule) and self._schedule[step]:
            with _left_out(self._network, self._stacks, before):
                return call()
        with _watched(self._network, self._stacks) as found:
            out = call()
        (now,) = found
        if self._measuring and before is not None:
            growth = now.added.float().norm(dim=-1) / before.added.float().norm(dim=-1)
            self._grown.setdefault(step, []).append(growth.mean().item())
        self._residuals[key] = now
        return out

    def ratios(self) -> tuple[float, ...]:
        """What was measured: for each step the mean ratio, the first is 1."""
        return (1.0, *(sum(g) / len(g) for _, g in sorted(self._grown.items())))


@dataclass(frozen=True)
class _Residual:
    added: torch.Tensor  # B L D
    returned: int  # tensors that the last block returns; 0: one, by itself


class _Again(nn.Module):
    # In the place of the last stack's blocks: the video's tokens and what was added to them.
    def __init__(self, residual: _Residual) -> None:
        super().__init__()
        self._residual = residual

    def forward(
        self, x: torch.Tensor, *others: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        added = self._residual.added
        x = torch.cat([x[:, : added.shape[1]] + added, x[:, added.shape[1] :]], dim=1)
        return (x, *others[: self._residual.returned - 1]) if self._residual.returned else x


@contextmanager
def _left_out(network: nn.Module, stacks: Sequence[str], residual: _Residual) -> Iterator[None]:
    places: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path in stacks:
            owner, _, name = path.rpartition(".")
            parent = network.get_submodule(owner)
            places.append((parent, name, parent.get_submodule(name)))
            inside = [_Again(residual)] if path == stacks[-1] else []
            parent._modules[name] = nn.ModuleList(inside)
        yield
    finally:
        for parent, name, stack in places:
            parent._modules[name] = stack


@contextmanager
def _watched(network: nn.Module, stacks: Sequence[str]) -> Iterator[list[_Residual]]:
    first = next(iter(network.get_submodule(stacks[0]).children()))
    last = list(network.get_submodule(stacks[-1]).children())[-1]
    entered: list[torch.Tensor] = []
    found: list[_Residual] = []

    def enter(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        entered[:] = given[:1]

    def leave(_: nn.Module, __: object, out: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        x = out[0] if isinstance(out, tuple) else out
        before = entered[0]
        count = len(out) if isinstance(out, tuple) else 0
        found[:] = [_Residual(x[:, : before.shape[1]] - before, count)]

    handles = [first.register_forward_pre_hook(enter), last.register_forward_hook(leave)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
