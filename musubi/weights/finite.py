"""Whether numbers are finite: on a device without waiting for it, on the host while they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from musubi.weights.dtypes import FP8

# dtype → an unsigned integer of its size, and the least pattern without its sign that is NaN or an
# infinity.
_LIMITS: dict[torch.dtype, tuple[Any, int]] = {
    torch.float64: (np.uint64, 0x7FF0 << 48),
    torch.float32: (np.uint32, 0x7F80 << 16),
    torch.bfloat16: (np.uint16, 0x7F80),
    torch.float16: (np.uint16, 0x7C00),
    torch.float8_e5m2: (np.uint8, 0x7C),
    torch.float8_e4m3fn: (np.uint8, 0x7F),
}


def finite(tensor: torch.Tensor) -> torch.Tensor:
    """Whether all numbers are finite, as a tensor of one truth on the same device.

    It takes no copy of the tensor, which `torch.isfinite` makes: extremes carry NaN along.
    """
    if not tensor.numel():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    extremes = torch.aminmax(tensor.half() if tensor.dtype in FP8 else tensor)
    return torch.isfinite(torch.stack(extremes)).all()


def finite_bytes(stored: memoryview, dtype: torch.dtype) -> bool:
    """Whether numbers are finite, from the bytes that they are stored in; lets other threads run.

    Args:
        stored: Whole numbers, little-endian.
        dtype: Of floating point.
    """
    if not len(stored):
        return True
    if dtype not in _LIMITS:
        return bool(finite(torch.frombuffer(stored, dtype=dtype)))
    kind, limit = _LIMITS[dtype]
    unsigned = np.bitwise_and(np.frombuffer(stored, dtype=kind), kind(np.iinfo(kind).max >> 1))
    return bool(unsigned.max() < limit)


class Truths:
    """Truths that lie on devices, by name, looked at all at once: a look makes the host wait."""

    def __init__(self) -> None:
        self._found: dict[torch.device, tuple[list[str], list[torch.Tensor]]] = {}
        self._false: list[str] = []

    def add(self, name: str, truth: torch.Tensor | bool) -> None:
        """Remember one; a tensor of a single element is not looked at yet."""
        if isinstance(truth, torch.Tensor):
            names, truths = self._found.setdefault(truth.device, ([], []))
            names.append(name)
            truths.append(truth)
        elif not truth:
            self._false.append(name)

    def false(self) -> list[str]:
        """The names of those that are false. Waits for the devices."""
        for names, truths in self._found.values():
            looked = torch.stack(truths).tolist()
            self._false += [name for name, truth in zip(names, looked, strict=True) if not truth]
        self._found.clear()
        return self._false
