"""Whether a compiler fuses what is computed: then plain operations are best, and else fewer of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_pretended = False


def fusing() -> bool:
    """Whether what runs is being compiled, or is recorded as if it were."""
    return _pretended or torch.compiler.is_compiling()


@contextmanager
def as_if_compiled() -> Iterator[None]:
    """In this block networks run the operations that a compiler would be given."""
    global _pretended  # noqa: PLW0603 - as wide as what it stands in for
    before, _pretended = _pretended, True
    try:
        yield
    finally:
        _pretended = before
