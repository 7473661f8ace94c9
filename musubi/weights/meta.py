"""Building a network without numbers, quickly: on the meta device, and nothing is initialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from musubi.plugin.architecture import Component
from musubi.plugin.traits import named

_RANDOM = frozenset({torch.rand, torch.randn})
_SCALED = frozenset({torch.Tensor.div, torch.Tensor.mul})


@contextmanager
def meta_device() -> Iterator[None]:
    """Modules built in this block have tensors of the meta device: shapes and dtypes.

    So they have under `torch.device("meta")`, where torch also goes through each initialisation:
    to draw or divide numbers that are not there, it first imports a good part of its compiler,
    which takes over a second.
    """
    with torch.device("meta"), _Uninitialised():
        yield


def cpu_device() -> torch.device:
    """For a block in `meta_device()` whose tensors hold numbers, such as one that imports transformers.

    It imports torch's compiler, and that of torch 2.6 works out numbers while it is imported.
    """
    return torch.device("cpu")


def trimmed(module: nn.Module) -> bool:
    """Have a network drop the layers whose output is not used; whether it has such layers."""
    trim = getattr(module, "trim", None)
    if callable(trim):
        trim()
    return callable(trim)


def finished(module: nn.Module) -> None:
    """Have a network, whose tensors are in place, make what no file holds."""
    finish = getattr(module, "finish", None)
    if callable(finish):
        finish()
    for part in module.modules():
        placed = getattr(part, "placed", None)
        if callable(placed):
            placed()


def on_meta(component: Component, numbers: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """A network on the meta device as one that is loaded: its layers, its dtypes, frozen.

    Args:
        component: What to build.
        numbers: Its sizes.
        dtype: What its weights are loaded in; the component's float32 patterns stay.
    """
    with meta_device():
        module: nn.Module = component.build(**numbers)
    trimmed(module)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            precise = named(name, component.traits.fp32)
            tensor.data = tensor.data.to(torch.float32 if precise else dtype)
    return module.eval().requires_grad_(False)


class _Uninitialised(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__module__", None) == "torch.nn.init":
            tensor = args[0] if args else kwargs.get("tensor")
            if _is_blank(tensor):
                return tensor
        if func in _RANDOM and kwargs.get("device") is None:
            kwargs.pop("generator", None)
            func = torch.empty
        if func in _SCALED and len(args) == 2 and _is_blank(args[0]) and _is_number(args[1]):
            return torch.empty(args[0].shape, dtype=args[0].dtype)
        return func(*args, **kwargs)


def _is_blank(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta and value.is_floating_point()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


class ModuleMap:
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
        self.dtypes = {name: tensor.dtype for name, tensor in state.items()}

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
