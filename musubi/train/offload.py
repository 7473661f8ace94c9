"""An optimizer on the host: its states never take device memory, for two copies a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from musubi.memory.host import host_bytes
from musubi.plugin.report import Quiet, Report


class Mirror:
    """Copies of trained parameters in host memory, which the optimizer steps instead of them.

    Args:
        parameters: On the device.
        report: Told when the memory cannot be page-locked.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, report: Report | None = None) -> None:
        self._report = report or Quiet()
        self._device = list(parameters)
        self._host = [nn.Parameter(self._like(p)) for p in self._device]
        for own, p in zip(self._host, self._device, strict=True):
            own.grad = self._like(p)
        self._twins = {id(p): own for p, own in zip(self._device, self._host, strict=True)}

    def groups(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The optimizer's groups, with the copies in place of the parameters."""
        return [
            {**group, "params": [self._twins[id(p)] for p in group["params"]]} for group in groups
        ]

    @torch.no_grad()
    def collect(self) -> None:
        """Bring weights and gradients here: the weights too, as others may have changed them."""
        for p, own in zip(self._device, self._host, strict=True):
            own.copy_(p, non_blocking=True)
            if p.grad is None:
                own.grad = None
                continue
            if own.grad is None:
                own.grad = self._like(p)
            own.grad.copy_(p.grad, non_blocking=True)
        if self._device and self._device[0].device.type == "cuda":
            torch.cuda.current_stream(self._device[0].device).synchronize()

    @torch.no_grad()
    def hand_back(self) -> None:
        """Copy the stepped weights to the device."""
        for p, own in zip(self._device, self._host, strict=True):
            p.copy_(own, non_blocking=True)

    def _like(self, tensor: torch.Tensor) -> torch.Tensor:
        memory = host_bytes(tensor.numel() * tensor.itemsize, tensor.device, self._report)
        return memory.view(tensor.dtype).view(tensor.shape)
