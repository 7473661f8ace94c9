"""The address of something that is imported on first use, so that plain data stays plain."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Lazy:
    """The address of something to import on first use: `package.module:name`."""

    address: str

    def load(self) -> Any:
        """Import and return it."""
        module, _, name = self.address.partition(":")
        return getattr(importlib.import_module(module), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import it and call it."""
        return self.load()(*args, **kwargs)
