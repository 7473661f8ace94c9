"""An optimizer on the host: its states take no device memory, at the cost of two copies per step."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from musubi.memory.host import host_bytes
from musubi.plugin.report import Quiet, Report


class Mirror:
    """Copies of trained parameters in host memory, which the optimizer steps instead of them.

    Args:
        parameters: The trained parameters, on the device.
        report: Gets a warning if the memory cannot be page-locked.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, report: Report | None = None) -> None:
        self._report = report or Quiet()
        self._device = list(parameters)
        self._host = [nn.Parameter(self._like(p)) for p in self._device]
        self._rooms = {
            id(own): self._like(p) for own, p in zip(self._host, self._device, strict=True)
        }
        self._norms: dict[int, torch.Tensor] = {}
        self._watched: list[Any] = []
        self._twins = {id(p): own for p, own in zip(self._device, self._host, strict=True)}

    def groups(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The optimizer's groups, with the copies in place of the parameters."""
        return [
            {**group, "params": [self._twins[id(p)] for p in group["params"]]} for group in groups
        ]

    def watch(self) -> None:
        """From now on, copy each gradient to the host as soon as it is complete, and free it on the device."""
        if self._watched:
            return
        for p, own in zip(self._device, self._host, strict=True):
            take = functools.partial(self._take, own)
            self._watched.append(p.register_post_accumulate_grad_hook(take))

    @torch.no_grad()
    def _take(self, own: nn.Parameter, p: torch.Tensor) -> None:
        gradient = p.grad
        if gradient is None:
            return
        room = self._rooms[id(own)]
        if id(own) in self._norms:  # of a batch before, in the same step
            gradient = gradient + room.to(p.device, non_blocking=True)
        room.copy_(gradient, non_blocking=True)
        self._norms[id(own)] = torch.linalg.vector_norm(gradient)
        p.grad = None

    def norm(self) -> torch.Tensor | None:
        """The norm of all gradients that were copied since the last step; None: there were none."""
        if not self._norms:
            return None
        return torch.linalg.vector_norm(torch.stack(list(self._norms.values())))

    @torch.no_grad()
    def collect(self, norm: torch.Tensor | None = None, max_norm: float = 0.0) -> None:
        """Copy weights and gradients to the host. The weights may have been changed since the last
        step.

        Args:
            norm: Norm of the gradients; needed to clip them.
            max_norm: Gradients are clipped to this norm; 0: no clipping.
        """
        for p, own in zip(self._device, self._host, strict=True):
            own.copy_(p, non_blocking=True)
            room = self._rooms[id(own)]
            if p.grad is not None:
                room.copy_(p.grad, non_blocking=True)
            there = p.grad is not None or id(own) in self._norms
            own.grad = room if there else None
        if self._device and self._device[0].device.type == "cuda":
            torch.cuda.current_stream(self._device[0].device).synchronize()
        if norm is not None and max_norm > 0:
            part = float(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
            for one in self._norms:
                self._rooms[one].mul_(part)
        self._norms.clear()

    @torch.no_grad()
    def hand_back(self) -> None:
        """Copy the stepped weights to the device."""
        for p, own in zip(self._device, self._host, strict=True):
            p.copy_(own, non_blocking=True)

    def _like(self, tensor: torch.Tensor) -> torch.Tensor:
        memory = host_bytes(tensor.numel() * tensor.itemsize, tensor.device, self._report)
        return memory.view(tensor.dtype).view(tensor.shape)
