"""From a checkpoint to a module in place: tensor by tensor, so a model never exists twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from musubi.errors import CheckpointError, counted
from musubi.plugin.architecture import Component
from musubi.plugin.traits import named
from musubi.weights.assemble import Assembler, Transform
from musubi.weights.contents import Inspection, examine, inspect, locate
from musubi.weights.dtypes import FP8, dtype_name, parse_dtype
from musubi.weights.files import Weights, open_weights
from musubi.weights.meta import ModuleMap, finished, meta_device, trimmed
from musubi.weights.placement import Placement
from musubi.weights.stream_in import TensorStream

__all__ = ["Inspection", "Placement", "Transform", "check_file", "inspect", "load"]

_SHOWN = 5


def check_file(
    component: Component, path: Path | str, *, others: Iterable[Component] = ()
) -> Inspection:
    """What `load` refuses of a checkpoint, as far as its headers tell; no tensor is read.

    Args:
        component: What the file should be.
        path: As `load` takes it.
        others: Components that the file may be instead, for the message.

    Raises:
        CheckpointError: The file cannot be read or ends early, is something else, lacks tensors or
            has unknown ones, or stores weights as integers without a scale.
    """
    with open_weights(locate(component, Path(path))) as weights:
        return _checked(component, weights, tuple(others))[0]


def _checked(
    component: Component, weights: Weights, others: tuple[Component, ...]
) -> tuple[Inspection, nn.Module, ModuleMap]:
    contents = examine(component, weights, others=others)
    with meta_device():
        module: nn.Module = component.build(**contents.numbers)
    module_map = ModuleMap(module)
    _check_names(component, contents, module_map)
    _check_shapes(component, contents, module_map)
    _check_kinds(component, contents, module_map)
    return contents, module, module_map


def load(
    component: Component,
    path: Path | str,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    transform: Transform | None = None,
    others: Iterable[Component] = (),
    placement: Placement | None = None,
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
        placement: How tensors are stored and where they live, when not all on the device.

    Raises:
        CheckpointError: The file cannot be read, is something else, lacks tensors or has unknown
            ones, or holds a number that is not finite.
    """
    others = tuple(others)
    device = torch.device(device)
    found = locate(component, Path(path))
    with open_weights(found) as weights:
        contents, module, module_map = _checked(component, weights, others)
        if trimmed(module):
            module_map = ModuleMap(module)
        dtypes = _dtypes(component, contents, module_map, dtype)
        if placement is not None:
            placement.prepare(module, dtypes)
        assembler = Assembler(
            weights, contents, module_map, device=device, transform=transform, placement=placement
        )
        wanted = [ours for ours in contents.sources if ours in module_map]
        wanted.sort(key=_order(contents, weights))
        plans = [assembler.plan(ours, dtypes[ours]) for ours in wanted]
        orders = (order for plan in plans for order in assembler.orders(plan))
        with TensorStream(weights, orders, device) as reading:
            for plan in plans:
                assembler.assemble(plan, reading)
        assembler.check(plans, found)
    return _finished(module, component, contents, module_map, device)


def _dtypes(
    component: Component, contents: Inspection, module_map: ModuleMap, asked: torch.dtype | None
) -> dict[str, torch.dtype]:
    """Our name → what its tensor is stored in, for all that the file holds or that are tied to it."""
    if asked is None and component.dtype != "file":
        asked = parse_dtype(component.dtype)
    found: dict[str, torch.dtype] = {}
    for ours, stored in contents.dtypes.items():
        if ours not in module_map:
            continue
        scaled = all(name in contents.scales for name in contents.sources[ours].names)
        if stored is torch.int8 and scaled:
            stored = torch.float8_e4m3fn  # a weight like those in fp8, and no integers
        if not stored.is_floating_point:
            dtype = stored
        elif named(ours, component.traits.fp32):
            dtype = torch.float32
        else:
            dtype = asked or (torch.bfloat16 if stored in FP8 else stored)
        found |= dict.fromkeys(module_map.tied(ours), dtype)
    return found


def _check_names(component: Component, contents: Inspection, module_map: ModuleMap) -> None:
    found = {
        tied for name in contents.sources if name in module_map for tied in module_map.tied(name)
    }
    missing = [
        name for name in module_map if name not in found and not named(name, component.optional)
    ]
    unknown = [
        n for n in contents.sources if n not in module_map and not named(n, component.optional)
    ]
    if not missing and not unknown:
        return
    facts = []
    if missing:
        facts.append(
            f"lacks {len(missing)} of {counted(len(module_map), 'tensor')} ({_examples(missing)})"
        )
    if unknown:
        facts.append(
            f"has {counted(len(unknown), 'tensor')} that the {component.name} does not know"
        )
        facts[-1] += f" ({_examples(unknown)})"
    raise CheckpointError(
        f"{contents.path}, read as a {component.name} in the {contents.dialect.name} layout, "
        f"{' and '.join(facts)}.",
        fix=f"Give --{component.option} another file: this one is {_reason(missing, unknown)}.",
    )


def _check_shapes(component: Component, contents: Inspection, module_map: ModuleMap) -> None:
    for name, shape in contents.shapes.items():
        if name in module_map and shape != module_map.shapes[name]:
            raise CheckpointError(
                f"{contents.path}: {name!r} has the shape {shape}, where a {component.name} of "
                f"its size has {module_map.shapes[name]}.",
                fix="The file is of another model; give another file.",
            )


def _check_kinds(component: Component, contents: Inspection, module_map: ModuleMap) -> None:
    """Refuse weights that are stored as integers: only 8-bit ones with a scale are numbers."""
    for name, stored in contents.dtypes.items():
        if name not in module_map or stored.is_floating_point or stored is torch.bool:
            continue
        if not module_map.dtypes[name].is_floating_point:
            continue
        source = contents.sources[name].names[0]
        if stored is torch.int8 and source in contents.scales:
            continue
        kind = dtype_name(stored)
        lacks = " without a scale" if stored is torch.int8 else ""
        raise CheckpointError(
            f"{contents.path}: {source!r} is stored in {kind}{lacks}, which is no {component.name} that "
            "can be read.",
            fix="Use the file in bfloat16, float16 or fp8, or in int8 with a scale for each weight.",
        )


def _order(contents: Inspection, weights: Weights) -> Callable[[str], int]:
    """In the order of the file's bytes, so that a disk reads forwards."""
    order = {name: i for i, name in enumerate(weights.names)}
    return lambda ours: order[contents.sources[ours].names[0]]


def _finished(
    module: nn.Module,
    component: Component,
    contents: Inspection,
    module_map: ModuleMap,
    device: torch.device,
) -> nn.Module:
    finished(module)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            raise CheckpointError(
                f"{contents.path} lacks {name!r}, and the {component.name} does not make it itself.",
                fix="Give another file.",
            )
    module_map.bring_rest(device)  # what finish() made
    for name, value in (
        ("component", component),
        ("numbers", dict(contents.numbers)),
        ("source", contents.path),
    ):
        setattr(module, f"musubi_{name}", value)
    return module.eval().requires_grad_(False)


def _reason(missing: list[str], unknown: list[str]) -> str:
    """What a file is that lacks tensors, or has unknown ones, or both."""
    if not unknown:
        return "incomplete, or of another model"
    return "of another model" if missing else "of another model, or of a newer version of this one"


def _examples(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (", …" if len(names) > _SHOWN else "")
