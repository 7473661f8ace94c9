"""What a computation allocates and multiplies, operation by operation, found without a device.

Fake tensors have shapes and no numbers: a step of a network of 14 billion weights takes a second
here, and no memory. `Recorder` also works on real tensors, so that a test can compare the two.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Kind = Literal[
    "product",
    "product8",
    "product int8",
    "convolution",
    "attention",
    "attention backward",
    "elementwise",
]

_PRODUCTS = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "convolution",
    "convolution_backward",
    "_scaled_mm",
    "int8_product",
    "linear",
}
_EIGHT: dict[str, Kind] = {"_scaled_mm": "product8", "int8_product": "product int8"}
_NO_WEIGHTS = (torch.bool, torch.uint8)
_ATTENTION = "_scaled_dot_product"
_IN_PARTS = ("attention", "attention_backward")  # of `nn.attention_parts`


@dataclass(frozen=True, slots=True)
class Op:
    """One operation.

    Attributes:
        name: Of the operator.
        kind: What decides its speed, and whether a compiler can fuse it.
        reads: Numbers of the storages it reads that were made while recording.
        writes: Numbers of those it makes or changes.
        flops: Floating-point operations of products and attention.
        traffic: Bytes that it reads and writes.
        live: Bytes alive while it runs, what it needs for itself included.
        own: What it needs for itself and gives back at once.
        widens: Whether it turns numbers of 8 bits into wider ones.
    """

    name: str
    kind: Kind
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    flops: float
    traffic: int
    live: int
    own: int
    widens: bool = False


@dataclass(frozen=True, slots=True)
class TraceMark:
    """A point between two operations: `at` operations ran before it, and `live` bytes are alive."""

    name: str
    block: int
    at: int
    live: int


@dataclass
class Trace:
    """Operations in the order they ran, and when each storage was made and given back.

    Attributes:
        sizes: Number of a storage → bytes.
        born: Number of a storage → the operation that made it.
        died: Number of a storage → how many operations had run when it was given back; those that
            are missing outlived the recording.
    """

    ops: list[Op] = field(default_factory=list[Op])
    marks: list[TraceMark] = field(default_factory=list[TraceMark])
    sizes: dict[int, int] = field(default_factory=dict[int, int])
    born: dict[int, int] = field(default_factory=dict[int, int])
    died: dict[int, int] = field(default_factory=dict[int, int])

    def find(self, name: str, block: int) -> TraceMark:
        """The first mark of that name and block; KeyError when there is none."""
        for mark in self.marks:
            if mark.name == name and mark.block == block:
                return mark
        raise KeyError(f"{name} {block}")

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""
        return max((op.live for op in self.ops), default=0)


class Recorder(TorchDispatchMode):
    """Records every operation run inside it, the backward pass too.

    Args:
        device: Storages on other devices are not counted; None counts all.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.trace = Trace()
        self._device = device
        self._numbers: dict[int, int] = {}
        self._live = 0
        self._count = 0

    def mark(self, name: str, block: int = -1) -> None:
        """Remember this point."""
        trace = self.trace
        trace.marks.append(TraceMark(name, block, len(trace.ops), self._live))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        out = func(*args, **kwargs)
        made = [a for a in tree_leaves(out) if isinstance(a, torch.Tensor)]
        if func.is_view or func.namespace == "prim" or not (given or made):
            return out
        self._note(func, args, kwargs, made)
        return out

    def _note(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: list[torch.Tensor]
    ) -> None:
        given = list(tensors_in((args, kwargs)))
        name = func._schema.name.partition("::")[2]
        reads = {n for t in given if (n := self._known(t)) is not None}
        changed = _changed(func._schema, args, kwargs)
        writes = {n for t in changed if (n := self._known(t)) is not None}
        writes |= {n for t in made if (n := self._take(t)) is not None}
        kind, flops, own = _work(name, args, made)
        traffic = sum(
            min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in (*given, *made)
        )
        self.trace.ops.append(
            Op(
                name,
                kind,
                tuple(sorted(reads)),
                tuple(sorted(writes)),
                flops,
                traffic,
                self._live + own,
                own,
                name == "_to_copy"
                and any(t.itemsize == 1 and t.dtype not in _NO_WEIGHTS for t in given),
            )
        )

    def _known(self, tensor: torch.Tensor) -> int | None:
        return self._numbers.get(_address(tensor))

    def _take(self, tensor: torch.Tensor) -> int | None:
        """The number of the tensor's storage; a new one is counted from here on."""
        known = self._known(tensor)
        if known is not None:
            return known
        if self._device is not None and tensor.device.type != self._device:
            return None
        address, storage = _address(tensor), tensor.untyped_storage()
        number, size = self._count, storage.nbytes()
        self._count += 1
        self._numbers[address] = number
        self._live += size
        trace = self.trace
        trace.sizes[number], trace.born[number] = size, len(trace.ops)
        weakref.finalize(storage, self._gone, address, number, size).atexit = False
        return number

    def _gone(self, address: int, number: int, size: int) -> None:
        if self._numbers.get(address) == number:
            del self._numbers[address]
        self._live -= size
        self.trace.died[number] = len(self.trace.ops)


def _changed(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """What an operation writes to of what it is given."""
    if not schema.is_mutable:
        return []
    named = [*zip(schema.arguments, args, strict=False)]
    named += [(one, kwargs[one.name]) for one in schema.arguments if one.name in kwargs]
    written = [value for one, value in named if one.alias_info and one.alias_info.is_write]
    return list(tensors_in(written))


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _work(name: str, args: tuple[Any, ...], made: list[torch.Tensor]) -> tuple[Kind, float, int]:
    """Kind, operations, and bytes of work space."""
    if name.startswith(_ATTENTION) or name in _IN_PARTS:
        return _attention(name, args)
    if name not in _PRODUCTS or not made:
        return "elementwise", 0.0, 0
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    if name in ("mm", "bmm", *_EIGHT):
        return _EIGHT.get(name, "product"), 2.0 * made[0].numel() * tensors[0].shape[-1], 0
    if name in ("addmm", "baddbmm"):
        return "product", 2.0 * made[0].numel() * tensors[1].shape[-1], 0
    if name == "convolution":
        weight = tensors[1]
        return "convolution", 2.0 * made[0].numel() * weight.numel() / weight.shape[0], 0
    if name == "convolution_backward":
        gradient, _, weight = tensors[:3]
        each = 2.0 * gradient.numel() * weight.numel() / weight.shape[0]
        return "convolution", each * len(made), 0
    return "product", 2.0 * made[0].numel() * tensors[0].shape[-1], 0


def _attention(name: str, args: tuple[Any, ...]) -> tuple[Kind, float, int]:
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    backward = name.endswith("backward")
    query, key = tensors[1:3] if backward else tensors[:2]
    products = 2.0 * query.numel() * key.shape[1 if name in _IN_PARTS else -2]
    if not backward:
        return "attention", 2 * products, 0
    # Gradients of the queries are summed up in float32; those of a part are copied into the whole.
    own = 4 * query.numel()
    if name in _IN_PARTS:
        own = (own + 2 * (query.numel() + 2 * key.numel())) // args[-1]
    return "attention backward", 5 * products, own


def walk(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The value with every tensor in it changed: lists, tuples and mappings are looked into."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(walk(v, change) for v in value)
    if isinstance(value, dict):
        return {k: walk(v, change) for k, v in value.items()}
    return value


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in it."""
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))
