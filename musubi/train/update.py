"""One optimizer step from gradients that may lie on several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from musubi.train.offload import Mirror
from musubi.train.schedule import Schedule

Sum = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Update:
    """Sums gradients, clips them, and steps.

    Args:
        parameters: Everything that is trained.
        optimizer: Steps.
        schedule: Moves the rate after each step.
        scaler: The gradient scaler of float16, or None.
        max_norm: Gradients are clipped to this norm; 0 leaves them.
        world: Number of processes.
        total: Sums a tensor over the processes, in place or not.
        mirror: Where the optimizer's parameters are, when it lives in host memory.
    """

    parameters: Sequence[nn.Parameter]
    optimizer: Optimizer
    schedule: Schedule
    scaler: Any
    max_norm: float
    world: int = 1
    total: Sum = lambda tensor: tensor
    mirror: Mirror | None = None

    def backward(self, loss: torch.Tensor) -> None:
        """Add to the gradients; float16's are scaled."""
        if self.mirror is not None and self.world == 1 and self.scaler is None:
            self.mirror.watch()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self) -> torch.Tensor:
        """Make the step; the norm of the gradients before clipping, still on the device."""
        self._gather()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        away = None if self.mirror is None else self.mirror.norm()
        if away is not None:
            norm = away
        else:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            if self.max_norm > 0:
                nn.utils.clip_grads_with_norm_(self.parameters, self.max_norm, norm)
        moved = True
        if self.mirror is not None:
            self.mirror.collect(away, self.max_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            before = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            moved = self.scaler.get_scale() >= before
        if self.mirror is not None:
            self.mirror.hand_back()
        if moved:
            self.schedule.step()
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def _gather(self) -> None:
        """Sum the gradients over processes: one transfer for each dtype, not one for each tensor."""
        if self.world == 1:
            return
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for dtype in sorted({p.dtype for p in self.parameters}, key=str):
            parts = [p.grad for p in self.parameters if p.dtype == dtype and p.grad is not None]
            flat = self.total(torch.cat([g.flatten() for g in parts]))
            for g, piece in zip(parts, flat.split([g.numel() for g in parts]), strict=True):
                g.copy_(piece.view_as(g))
