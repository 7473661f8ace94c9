"""An import that is delayed until first use, so that descriptions import no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Lazy:
    """The address of an object that is imported on first use: `package.module:name`."""

    address: str

    def load(self) -> Any:
        """Import the object and return it."""
        module, _, name = self.address.partition(":")
        return getattr(importlib.import_module(module), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import the object and call it."""
        return self.load()(*args, **kwargs)
