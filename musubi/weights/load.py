"""From a checkpoint to a module in place: one tensor at a time, so a model never exists twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musubi.errors import CheckpointError
from musubi.spec.architecture import Component
from musubi.spec.keys import Source
from musubi.spec.traits import unread
from musubi.weights.contents import Inspection, examine, inspect, locate
from musubi.weights.dtypes import FP8, dtype_name, parse_dtype
from musubi.weights.files import Weights, open_weights
from musubi.weights.scaled import expand

__all__ = ["Inspection", "Transform", "inspect", "load"]

Transform = Callable[[str, torch.Tensor], torch.Tensor]
"""(our name, the tensor on its device) → the tensor to use; float32 when it was stored in 8 bits."""

_SHOWN = 5


def load(
    component: Component,
    path: Path | str,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    transform: Transform | None = None,
    others: Iterable[Component] = (),
) -> nn.Module:
    """Build a component from its checkpoint, in evaluation mode and without gradients.

    The module has the attributes `musubi_component`, `musubi_numbers` and `musubi_source`.

    Args:
        component: What to build; its layout and sizes are read from the file.
        path: A file, a shard, a folder, or a snapshot with the component in a subfolder.
        device: Where each tensor goes as soon as it is read.
        dtype: What its floating-point tensors are stored in; None is the component's own choice.
            What the component keeps in float32 stays so. Kept as in the file ("file"), weights
            stored in 8 bits become bfloat16.
        transform: Applied to each parameter before the cast: merging a LoRA, say.
        others: Components that the file may be instead, for the message.

    Raises:
        CheckpointError: The file cannot be read, is something else, lacks tensors or has unknown
            ones, or holds a number that is not finite.
    """
    others = tuple(others)
    found = locate(component, Path(path))
    with open_weights(found) as weights:
        contents = examine(component, weights, others=others)
        with torch.device("meta"):
            module: nn.Module = component.build(**contents.numbers)
        places = _places(module)
        _check_names(component, contents, places)
        _check_shapes(component, contents, places)
        target = _Target(component, torch.device(device), dtype)
        left = unread(module)
        for ours in sorted(contents.sources, key=_order(contents, weights)):
            if ours in places and ours not in left:
                tensor = _assembled(contents.sources[ours], weights, contents, target.device)
                _place(places[ours], target.settle(ours, tensor, transform, found))
    return _finished(module, component, contents, target.device)


class _Target:
    """Where tensors go, and in what dtype."""

    def __init__(
        self, component: Component, device: torch.device, dtype: torch.dtype | None
    ) -> None:
        if dtype is None and component.dtype != "file":
            dtype = parse_dtype(component.dtype)
        self.device = device
        self.dtype = dtype
        self._fp32 = re.compile("|".join(f"(?:{p})" for p in component.traits.fp32) or r"(?!)")

    def settle(
        self,
        ours: str,
        loaded: tuple[torch.Tensor, torch.dtype],
        transform: Transform | None,
        path: Path,
    ) -> torch.Tensor:
        tensor, stored = loaded
        if not tensor.is_floating_point():
            return tensor
        if transform is not None:
            tensor = transform(ours, tensor)
        cast = tensor.to(self._dtype(ours, stored))
        if not _finite(cast):
            raise _not_finite(ours, tensor, cast, path)
        return cast

    def _dtype(self, ours: str, stored: torch.dtype) -> torch.dtype:
        if self._fp32.fullmatch(ours):
            return torch.float32
        if self.dtype is not None:
            return self.dtype
        return torch.bfloat16 if stored in FP8 else stored


def _places(module: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Name → (owner, attribute) of all that share the tensor, for each name that a file may use."""
    state = module.state_dict(keep_vars=True)
    shared: dict[int, list[tuple[nn.Module, str]]] = {}
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        shared.setdefault(id(tensor), []).append((module.get_submodule(path), leaf))
    return {name: shared[id(tensor)] for name, tensor in state.items()}


def _place(owners: list[tuple[nn.Module, str]], tensor: torch.Tensor) -> None:
    parameter = nn.Parameter(tensor, requires_grad=False)
    for owner, leaf in owners:
        if leaf in owner._parameters:
            owner._parameters[leaf] = parameter
        else:
            owner._buffers[leaf] = tensor


def _check_names(component: Component, contents: Inspection, places: dict[str, list[Any]]) -> None:
    optional = re.compile("|".join(f"(?:{p})" for p in component.optional) or r"(?!)")
    found = {id(places[name]) for name in contents.sources if name in places}
    missing = [
        name
        for name, owners in places.items()
        if id(owners) not in found and not optional.fullmatch(name)
    ]
    unknown = [n for n in contents.sources if n not in places and not optional.fullmatch(n)]
    if not missing and not unknown:
        return
    facts = []
    if missing:
        facts.append(f"lacks {len(missing)} of {len(places)} tensors ({_examples(missing)})")
    if unknown:
        facts.append(f"has {_count(unknown)} that the {component.name} does not know")
        facts[-1] += f" ({_examples(unknown)})"
    raise CheckpointError(
        f"{contents.path}, read as a {component.name} in the {contents.dialect.name} layout, "
        f"{' and '.join(facts)}.",
        fix="The file is incomplete or of another model; download it again or give another file.",
    )


def _check_shapes(component: Component, contents: Inspection, places: dict[str, list[Any]]) -> None:
    for name, shape in contents.shapes.items():
        if name in places:
            owner, leaf = places[name][0]
            built = tuple(getattr(owner, leaf).shape)
            if shape != built:
                raise CheckpointError(
                    f"{contents.path}: {name!r} has the shape {shape}, where a {component.name} of "
                    f"its size has {built}.",
                    fix="The file is of another model; give another file.",
                )


def _order(contents: Inspection, weights: Weights) -> Callable[[str], int]:
    """In the order of the file's bytes, so that a disk reads forwards."""
    order = {name: i for i, name in enumerate(weights.names)}
    return lambda ours: order[contents.sources[ours].names[0]]


def _assembled(
    source: Source, weights: Weights, contents: Inspection, device: torch.device
) -> tuple[torch.Tensor, torch.dtype]:
    """One of our tensors on the device, and the dtype that the file stores it in."""
    parts = []
    for name in source.names:
        scale = contents.scales.get(name)
        stored = weights.read(name)
        # A copy even on the CPU: a module must not depend on the file once it is loaded.
        weight = stored.to(device, copy=True)
        parts.append(expand(name, weight, weights.read(scale) if scale is not None else None))
    dtype = weights.dtypes[source.names[0]]
    if source.operation == "swap":
        return torch.cat(parts[0].chunk(2)[::-1]), dtype
    if source.operation == "concat":
        return torch.cat(parts), dtype
    return parts[0].contiguous(), dtype


def _finite(tensor: torch.Tensor) -> bool:
    """Without a copy of the tensor, which `torch.isfinite` makes: its extremes carry NaN along."""
    if not tensor.numel():
        return True
    extremes = torch.stack(torch.aminmax(tensor.float() if tensor.dtype in FP8 else tensor))
    return bool(torch.isfinite(extremes).all())


def _not_finite(ours: str, tensor: torch.Tensor, cast: torch.Tensor, path: Path) -> CheckpointError:
    if _finite(tensor):
        return CheckpointError(
            f"{path}: {ours!r} does not fit {dtype_name(cast.dtype)}: its largest number is "
            f"{float(tensor.abs().max()):.4g}.",
            fix="Load it in bfloat16 or float32.",
        )
    kind = "NaN" if bool(torch.isnan(tensor).any()) else "an infinity"
    return CheckpointError(
        f"{path}: {ours!r} holds {kind}.", fix="The file is damaged; download or train it again."
    )


def _finished(
    module: nn.Module, component: Component, contents: Inspection, device: torch.device
) -> nn.Module:
    finish = getattr(module, "finish", None)
    if callable(finish):
        finish()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            raise CheckpointError(
                f"{contents.path} lacks {name!r}, and the {component.name} does not make it itself.",
                fix="Give another file.",
            )
    module.to(device)  # what finish() made
    for name, value in (
        ("component", component),
        ("numbers", dict(contents.numbers)),
        ("source", contents.path),
    ):
        setattr(module, f"musubi_{name}", value)
    return module.eval().requires_grad_(False)


def _count(names: list[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _examples(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (", …" if len(names) > _SHOWN else "")
