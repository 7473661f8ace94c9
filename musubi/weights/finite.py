"""Whether numbers are finite: on a device without waiting for it, on the host while they are read."""

from __future__ import annotations

import torch

from musubi.weights.dtypes import FP8


def finite(tensor: torch.Tensor) -> torch.Tensor:
    """Whether all numbers are finite, as a tensor of one truth on the same device.

    It takes no copy of the tensor, which `torch.isfinite` makes: extremes carry NaN along.
    """
    if not tensor.numel():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    extremes = torch.aminmax(tensor.half() if tensor.dtype in FP8 else tensor)
    return torch.isfinite(torch.stack(extremes)).all()


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
