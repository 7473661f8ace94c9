"""What a memory policy may say while a network is loaded: how tensors are stored and where they live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn


class Placement(Protocol):
    """How a module's tensors are stored, and where; `memory` implements it.

    For each tensor: it is read, brought to the device, expanded unless it is kept in 8 bits,
    transformed, stored or cast, and placed in its home or on the device. Where nothing is computed,
    the bytes go from the file into the home and never visit the device.
    """

    def prepare(self, module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
        """Called once, when the module is on the meta device and nothing is read yet.

        It may change the class of submodules, and register buffers or parameters (scales, say),
        which are then not demanded from the file.

        Args:
            module: The network.
            dtypes: Our name to what its tensor is stored in when `store` does not say otherwise;
                for each tensor that the file holds, and each that is tied to one.
        """
        ...

    def keeps(self, name: str, dtype: torch.dtype) -> bool:
        """Whether a weight that the file stores in 8 bits stays so, and goes to `store` as it is.

        Asked only where that is possible: without a transform, for a matrix in e4m3 or int8 with one
        scale for all of it or one for each row (e4m3 may have none), of one part or of several
        joined along axis 0.

        Args:
            name: Our name.
            dtype: What the file stores it in.
        """
        ...

    def stores(self, name: str) -> bool:
        """Whether `store` wants to see this tensor; asked before it is read. Kept ones always go there."""
        ...

    def store(
        self, name: str, tensor: torch.Tensor, scale: torch.Tensor | None
    ) -> Mapping[str, torch.Tensor] | None:
        """The tensors to place for this one, or None: it is cast as usual.

        Args:
            name: Our name.
            tensor: On the device, transformed, not yet cast; of an 8-bit dtype only when kept.
            scale: For a kept tensor what its rows are multiplied by: (rows, 1) float32, on the
                device, ones where the file has no scale. None for all others.

        Returns:
            Our names, those registered in `prepare` too, to tensors.
        """
        ...

    def home(self, name: str) -> torch.Tensor | None:
        """A host tensor of the final shape and dtype that is filled and becomes the parameter.

        None: the tensor lives on the device. Asked for each name that is placed.
        """
        ...
