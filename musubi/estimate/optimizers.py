"""Bytes of optimizer states, by the name of the optimizer and the sizes of what it trains."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

# name → bytes for each trained number. Block-wise 8-bit states have a float32 for 256 numbers, and
# tensors below 4,096 numbers stay in float32.
_BYTES = {"adamw": 8.0, "schedulefree": 8.0, "lion": 4.0, "muon": 4.0}
# Prodigy keeps two more numbers beside the moments; its schedule-free form one, and rows and columns.
_BYTES |= {"prodigy": 16.0, "prodigyplus": 4.5, "prodigyplusschedulefree": 4.5}
_FOUR = 2 * (0.5 + 4 / 128)
_EIGHT = 2 * (1 + 4 / 256)
_EIGHT_FROM = 4096
_UNKNOWN = 8.0


def state_bytes(name: str, sizes: Sequence[int]) -> int:
    """Bytes of the states of an optimizer.

    Args:
        name: `--optimizer_type`.
        sizes: Numbers in each trained tensor.
    """
    kind = name.lower().rpartition(".")[2]
    few = {"8bit": _EIGHT, "4bit": _FOUR}.get(kind[-4:])
    if few is not None:
        moments = 1 if kind.startswith("lion") else 2
        return sum(int(n * (few if n >= _EIGHT_FROM else 8) * moments / 2) for n in sizes)
    if kind == "adafactor":
        return sum(int(4 * 2 * n**0.5) for n in sizes)  # rows and columns
    if kind == "came":
        return sum(int(4 * n + 4 * 4 * n**0.5) for n in sizes)
    each = _BYTES.get(kind)
    return int(sum(sizes) * (_probed(kind) if each is None else each))


def scratch_bytes(name: str, sizes: Sequence[int]) -> int:
    """What a step of the optimizer needs for a moment: those of PyTorch take all tensors at once."""
    kind = name.lower().rpartition(".")[2]
    if "8bit" in kind:
        return 0
    if kind == "adafactor":
        return 8 * max(sizes, default=0)
    if kind in ("adamw4bit", "lion", "came", "muon"):
        return 16 * max(sizes, default=0)  # one tensor after the other
    return 4 * sum(sizes)


@functools.cache
def _probed(kind: str) -> float:
    """Bytes for each number, from a step of a class of `torch.optim` on a small tensor."""
    classes = {n.lower(): c for n, c in vars(torch.optim).items() if inspect.isclass(c)}
    found = classes.get(kind)
    if found is None or not issubclass(found, Optimizer) or kind in ("sparseadam", "lbfgs"):
        return _UNKNOWN
    parameter = nn.Parameter(torch.zeros(64, 64))
    parameter.grad = torch.ones(64, 64)
    optimizer = found([parameter], lr=1e-3)  # type: ignore[call-arg]
    optimizer.step()
    held = [v for v in optimizer.state[parameter].values() if isinstance(v, torch.Tensor)]
    return sum(v.numel() * v.element_size() for v in held if v.numel() > 1) / parameter.numel()
