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
        optimizer: Steps.
        schedule: Moves the rate after each step.
        scaler: The gradient scaler of float16, or None.
        max_norm: Gradients are clipped to this norm; 0 leaves them.
        world: Number of processes.
        total: Sums a tensor over the processes, in place or not.
        mirror: Where the optimizer's parameters are, when it lives in host memory.
        rounding: Rounds weights in bfloat16 by chance, or None.
        average: Of the weights, kept beside them, or None.
        draw_average: Whether previews and validation see the average, where there is one.
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
        """Inside, the weights are those that a schedule-free optimizer hands out; then as before, to the bit."""
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
        """Inside, the weights are those that previews and validation look at."""
        if self.average is not None and self.draw_average:
            with self.average.shown():
                yield
        else:
            with self.as_saved():
                yield

    def parts(self) -> dict[str, Any]:
        """What a resumed run needs, by part."""
        return {name: part.state_dict() for name, part in self._parts()}

    def load(self, parts: Mapping[str, Any]) -> None:
        """Put back what `parts` gave.

        Raises:
            ValueError: A part does not fit; each optimizer has errors of its own too.
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
