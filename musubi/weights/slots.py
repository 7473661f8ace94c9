"""The places of a module's tensors by name, and which names share one tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn


class Slots:
    """Where each tensor of a module goes.

    Args:
        module: On the meta device; names that share a tensor are tied from here on, also when the
            module's tensors are replaced.
    """

    def __init__(self, module: nn.Module) -> None:
        state = module.state_dict(keep_vars=True)
        tied: dict[int, list[str]] = {}
        for name, tensor in state.items():
            tied.setdefault(id(tensor), []).append(name)
        self._module = module
        self._tied = {name: tied[id(tensor)] for name, tensor in state.items()}
        self._placed: dict[int, torch.Tensor] = {}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._tied

    def __len__(self) -> int:
        return len(self._tied)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tied)

    def tied(self, name: str) -> list[str]:
        """All names of one tensor, this one included."""
        return self._tied.get(name, [name])

    def place(self, name: str, tensor: torch.Tensor) -> None:
        """Make this the tensor of that name and of all that are tied to it."""
        parameter = nn.Parameter(tensor, requires_grad=False)
        for alias in self.tied(name):
            path, _, leaf = alias.rpartition(".")
            owner = self._module.get_submodule(path)
            if leaf in owner._parameters:
                owner._parameters[leaf] = parameter
            else:
                owner._buffers[leaf] = tensor
        self._placed |= {id(parameter): parameter, id(tensor): tensor}

    def bring_rest(self, device: torch.device) -> None:
        """Move every tensor that was not placed here: what the module made itself."""
        moved: dict[int, torch.Tensor] = {}
        for owner in self._module.modules():
            for tensors in cast(list[dict[str, Any]], [owner._parameters, owner._buffers]):
                for leaf, tensor in tensors.items():
                    if tensor is None or id(tensor) in self._placed:
                        continue
                    if id(tensor) not in moved:
                        new = tensor.detach().to(device)
                        if isinstance(tensor, nn.Parameter):
                            new = nn.Parameter(new, requires_grad=False)
                        moved[id(tensor)] = new
                    tensors[leaf] = moved[id(tensor)]
