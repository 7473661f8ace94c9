"""A checkpoint's tensors under our names, one at a time: expanded, joined and put in our shapes."""

from __future__ import annotations

import torch

from musubi.weights.contents import Inspection
from musubi.weights.files import Weights
from musubi.weights.scaled import expand


class OurTensors:
    """Reads what a file holds as our network has it.

    Args:
        weights: The open file.
        contents: What it is.
        device: Where the tensors go.
    """

    def __init__(self, weights: Weights, contents: Inspection, device: torch.device) -> None:
        self.weights, self.contents, self.device = weights, contents, device

    def read(self, ours: str) -> torch.Tensor:
        """One tensor; float32 when it is stored in 8 bits, else as it is stored."""
        source = self.contents.sources[ours]
        parts = [self.expanded(name) for name in source.names]
        if source.operation == "swap":
            return torch.cat(parts[0].chunk(2)[::-1])
        if source.operation == "squeeze":
            return parts[0].reshape(self.contents.shapes[ours])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def expanded(self, name: str) -> torch.Tensor:
        """A tensor of the file under its own name, multiplied by its scale where it has one."""
        scale = self.contents.scales.get(name)
        stored = self.weights.read(name).to(self.device)
        return expand(name, stored, self.weights.read(scale) if scale is not None else None)
