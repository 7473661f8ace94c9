"""Training steps for networks so small that launching their kernels takes longer than running them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn


class Rated:
    """AdamW whose rate can change between replays of a captured step.

    Args:
        parameters: What is trained.
        peak: The highest rate.
        decay: Weight decay.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, peak: float, decay: float) -> None:
        self.parameters = list(parameters)
        self.peak = peak
        device = self.parameters[0].device
        self.rate = torch.full((), peak / 30, device=device)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.rate if device.type == "cuda" else peak,
            weight_decay=decay,
            betas=(0.9, 0.99),
            capturable=device.type == "cuda",
        )

    def take(self, loss: torch.Tensor) -> None:
        """One step down the gradient of the loss, its norm clipped to 1."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()

    def at(self, done: float) -> None:
        """Set the rate: up at the beginning, constant, and down over the last half."""
        value = self.peak * max(1e-3, min(done / 0.03, 1.0, (1 - done) / 0.5))
        self.rate.fill_(value)
        if not self.rate.is_cuda:
            for group in self.optimizer.param_groups:
                group["lr"] = value


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
