"""A full-size network with random weights, built and placed as a loaded one would be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from musubi.memory.apply import PolicyPlacement
from musubi.plugin import Component
from musubi.weights.meta import finished, on_meta


def random_network(
    component: Component,
    numbers: Mapping[str, Any],
    placement: PolicyPlacement,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> nn.Module:
    """The component at that size, frozen, each tensor at its place.

    Args:
        component: What to build.
        numbers: Its sizes.
        placement: Where tensors go, and how they are stored.
        dtype: What its weights would be stored in; the component's float32 patterns stay.
    """
    module = on_meta(component, numbers, dtype)
    state = module.state_dict()
    dtypes = {name: t.dtype for name, t in state.items() if t.is_floating_point()}
    placement.prepare(module, dtypes)
    generator = torch.Generator(placement.device).manual_seed(0)
    for name, kind in dtypes.items():
        made = _random(state[name].shape, generator, kind)
        for stored, tensor in (placement.store(name, made, None) or {name: made}).items():
            _put(module, stored, tensor, placement.home(stored))
    finished(module)
    return placement.finish(module)


def _random(shape: torch.Size, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    # A scale that keeps activations near one: random numbers cost what trained ones cost.
    device = generator.device
    if len(shape) < 2:
        return torch.ones(shape, device=device, dtype=dtype)
    made = torch.empty(shape, device=device, dtype=dtype).normal_(generator=generator)
    return made.mul_((shape.numel() / shape[0]) ** -0.5)


def _put(module: nn.Module, name: str, tensor: torch.Tensor, home: torch.Tensor | None) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if home is not None:
        tensor = home.copy_(tensor)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor
