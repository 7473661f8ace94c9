"""Training steps for networks so small that launching their kernels takes longer than running them."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

MOMENTUM = 0.9


class Rated:
    """An optimizer whose rate can change between replays of a captured step.

    AdamW, and for matrices the nearest orthogonal one of their momentum, by the Newton-Schulz
    iteration of the Muon optimizer (K. Jordan et al., 2024), in steps as large as AdamW's
    (J. Liu et al., arXiv 2502.16982). The autoencoder learns several times faster by it.

    Args:
        parameters: What is trained.
        peak: The highest rate.
        decay: Weight decay.
        matrices: Those of the parameters that are matrices; what follows the first axis is one.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        peak: float,
        decay: float,
        matrices: Sequence[nn.Parameter] = (),
    ) -> None:
        self.parameters = list(parameters)
        self.peak = peak
        device = self.parameters[0].device
        self.rate = torch.full((), peak / 30, device=device)
        apart = {id(p) for p in matrices}
        self.others = [p for p in self.parameters if id(p) not in apart]
        self.optimizer = torch.optim.AdamW(
            self.others,
            lr=self.rate if device.type == "cuda" else peak,
            weight_decay=decay,
            betas=(0.9, 0.99),
            capturable=device.type == "cuda",
        )
        alike: dict[tuple[int, int], list[nn.Parameter]] = {}
        for matrix in matrices:
            alike.setdefault((len(matrix), matrix[0].numel()), []).append(matrix)
        self.alike = [
            (group, torch.zeros(len(group), *shape, device=device))
            for shape, group in alike.items()
        ]

    def take(self, loss: torch.Tensor) -> None:
        """One step down the gradient of the loss; AdamW's gradient's norm is clipped to 1."""
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(self.others, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            for group, momentum in self.alike:
                slopes = torch.stack([_slope(matrix) for matrix in group])
                momentum.lerp_(slopes, 1 - MOMENTUM)
                steps = orthogonal(slopes.lerp(momentum, MOMENTUM))
                steps *= -self.rate * (0.2 * max(steps.shape[1:]) ** 0.5)
                for matrix, step in zip(group, steps, strict=True):
                    matrix.add_(step.view_as(matrix))

    def at(self, done: float) -> None:
        """Set the rate: up at the beginning, constant, and down over the last half."""
        value = self.peak * max(1e-3, min(done / 0.03, 1.0, (1 - done) / 0.5))
        self.rate.fill_(value)
        if not self.rate.is_cuda:
            for group in self.optimizer.param_groups:
                group["lr"] = value


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices, N rows columns, with their singular values brought near one; zeros stay zeros."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.to(torch.bfloat16 if x.is_cuda else x.dtype)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def _slope(matrix: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(matrix).flatten(1) if matrix.grad is None else matrix.grad.flatten(1)


class Followed:
    """The running mean of a network's weights: nearly what annealing would end with, at any time.

    Args:
        module: The network.
        kept: Of the mean, a step.
    """

    def __init__(self, module: nn.Module, *, kept: float) -> None:
        self.mean: Any = copy.deepcopy(module).eval().requires_grad_(False)
        self.kept = kept
        self.pairs = [*self.mean.parameters()], [*module.parameters()]

    @torch.no_grad()
    def move(self) -> None:
        """Towards what the weights are now."""
        torch._foreach_lerp_(*self.pairs, 1 - self.kept)  # pyright: ignore


def captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The step as one launch; on a CPU the step itself. It must need nothing of the host."""
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def compiled(
    function: Callable[..., torch.Tensor], *given: torch.Tensor
) -> Callable[..., torch.Tensor]:
    """The function in fewer kernels, on a GPU with a compiler beside it; otherwise as it is.

    Args:
        function: Gives a loss.
        given: What it is tried with, its gradients too.
    """
    if not given[0].is_cuda:
        return function
    fast = torch.compile(function, dynamic=False)
    began = time.monotonic()
    try:
        fast(*given).backward()
    except Exception as error:
        sys.stderr.write(f"not compiled: {error}\n")
        return function
    sys.stderr.write(f"compiled in {time.monotonic() - began:.0f}s\n")
    return fast


def ticks(steps: int, seconds: float | None, device: torch.device) -> Iterator[tuple[int, float]]:
    """(number, how much of the schedule is over) for each step.

    Args:
        steps: How many at most.
        seconds: How long the schedule takes; None: all the steps.
        device: Where the steps run.
    """
    began, done = time.monotonic(), 0.0
    for number in range(steps):
        if seconds is None:
            done = number / steps
        elif number % 10 == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            done = (time.monotonic() - began) / seconds
        if done >= 1:
            return
        yield number, done
