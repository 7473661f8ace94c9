"""One optimizer step from gradients that may lie on several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from musubi.train import optim, optimizer_state
from musubi.train.average import Average
from musubi.train.offload import Mirror
from musubi.train.rounding import Rounding
from musubi.train.schedule import Schedule

Sum = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Update:
    """Sums gradients, clips them, and steps.

    Args:
        parameters: Everything that is trained.
        optimizer: The optimizer.
        schedule: Sets the learning rate after each step.
        scaler: The gradient scaler of float16, or None.
        max_norm: Gradients are clipped to this norm; 0: no clipping.
        world: Number of processes.
        total: Sums a tensor over the processes, in place or not.
        mirror: The optimizer's parameters, if the optimizer is in host memory; else None.
        rounding: Stochastic rounding of bfloat16 weights, or None.
        average: The moving average of the weights, or None.
        draw_average: Whether previews and validation use the average, if there is one.
    """

    parameters: Sequence[nn.Parameter]
    optimizer: Optimizer
    schedule: Schedule
    scaler: Any
    max_norm: float
    world: int = 1
    total: Sum = lambda tensor: tensor
    mirror: Mirror | None = None
    rounding: Rounding | None = None
    average: Average | None = None
    draw_average: bool = True

    def backward(self, loss: torch.Tensor) -> None:
        """Add to the gradients; with float16 the loss is scaled."""
        if self.mirror is not None and self.world == 1 and self.scaler is None:
            self.mirror.watch()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self) -> torch.Tensor:
        """Make the step. Returns the norm of the gradients before clipping, on the device."""
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
        if self.rounding is not None:
            self.rounding.step(self.optimizer)
        elif self.scaler is None:
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

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Inside this context, the weights are as they are saved (a schedule-free optimizer's
        average); afterwards they are exactly as before.
        """
        if not optim.is_schedule_free(self.optimizer):
            yield
            return
        own = [p for group in self.optimizer.param_groups for p in group["params"]]
        kept = [p.detach().to("cpu", copy=True) for p in own]
        self.optimizer.eval()  # type: ignore[attr-defined]
        self._hand_back()
        try:
            yield
        finally:
            self.optimizer.train()  # type: ignore[attr-defined]
            with torch.no_grad():
                for p, value in zip(own, kept, strict=True):
                    p.copy_(value)
            self._hand_back()

    @contextmanager
    def as_drawn(self) -> Iterator[None]:
        """Inside this context, the weights are those that previews and validation use."""
        if self.average is not None and self.draw_average:
            with self.average.shown():
                yield
        else:
            with self.as_saved():
                yield

    def parts(self) -> dict[str, Any]:
        """The state for a resumed run, by part."""
        return {name: part.state_dict() for name, part in self._parts()}

    def load(self, parts: Mapping[str, Any]) -> None:
        """Restore what `parts` returned.

        Raises:
            ValueError: A part does not fit. Optimizers may raise other errors too.
        """
        optimizer_state.restore(self.optimizer, parts["optimizer"])
        for name, part in self._parts():
            if name != "optimizer" and (name in parts or name == "schedule"):
                part.load_state_dict(parts[name])

    def _parts(self) -> Iterator[tuple[str, Any]]:
        yield "optimizer", self.optimizer
        yield "schedule", self.schedule
        for name in ("scaler", "rounding", "average"):
            part = getattr(self, name)
            if part is not None:
                yield name, part

    def _hand_back(self) -> None:
        if self.mirror is not None:
            self.mirror.hand_back()

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
