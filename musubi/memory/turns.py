"""Turns: of several networks that are trained in one run, only those that work are on the device.

What is trained, and what streams, stays where it is. The other weights never change, so that their
copy in host memory is made once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from musubi.memory.apply import give_slots_back
from musubi.memory.host import host_bytes
from musubi.plugin.report import Quiet, Report

_ALIGNMENT = 64


class Turns:
    """The networks of a run that take turns; each works on the device when it is loaded.

    Args:
        device: Where they work.
        report: Told when host memory cannot be page-locked.
    """

    def __init__(self, device: torch.device, report: Report | None = None) -> None:
        self._device = device
        self._report: Report = report or Quiet()
        self._networks: dict[str, nn.Module] = {}
        self._homes: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._resting: set[str] = set()

    def add(self, name: str, network: nn.Module) -> None:
        """Take up a network that is on the device, and let it rest."""
        self._networks[name] = network
        self._rest(name)

    @property
    def resting(self) -> Collection[str]:
        """The names of those that are not on the device."""
        return frozenset(self._resting)

    def take(self, names: Collection[str]) -> None:
        """Let these networks work, and all others rest.

        No backward pass may be under way: it would need the weights of the network that ran.
        """
        for name in self._networks:
            if name not in names and name not in self._resting:
                self._rest(name)
        for name in names:
            if name in self._resting:
                self._wake(name)

    def _rest(self, name: str) -> None:
        network = self._networks[name]
        give_slots_back(network)
        if name not in self._homes:
            self._homes[name] = self._housed(network)
        for tensor, home in self._homes[name]:
            tensor.data = home
        self._resting.add(name)

    def _wake(self, name: str) -> None:
        for tensor, home in self._homes[name]:
            tensor.data = home.to(self._device, non_blocking=True, copy=True)
        self._resting.remove(name)

    def _housed(self, network: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each tensor that is not trained and lies on the device, and its copy in host memory."""
        found: Mapping[int, torch.Tensor] = {
            id(tensor): tensor
            for tensor in (*network.parameters(), *network.buffers())
            if not tensor.requires_grad
            and tensor.device.type == self._device.type
            and tensor.numel()
        }
        sizes = [-(-t.numel() * t.itemsize // _ALIGNMENT) * _ALIGNMENT for t in found.values()]
        memory = host_bytes(sum(sizes), self._device, self._report)
        homes, start = [], 0
        for tensor, size in zip(found.values(), sizes, strict=True):
            part = memory[start : start + tensor.numel() * tensor.itemsize]
            home = part.view(tensor.dtype).view(tensor.shape)
            home.copy_(tensor)
            homes.append((tensor, home))
            start += size
        return homes
