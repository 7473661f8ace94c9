"""Random seeds that depend only on the position in the run, so that a resumed run draws the same numbers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import torch


def derive(seed: int, *place: int | str) -> int:
    """A 63-bit seed for one purpose at one place: `derive(seed, "noise", step, number)`.

    >>> derive(1, "noise", 2) == derive(1, "noise", 2)
    True
    """
    text = "/".join(str(part) for part in (seed, *place))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device, seed: int, *place: int | str) -> torch.Generator:
    """A torch generator on `device` for one purpose at one place."""
    return torch.Generator(device=device).manual_seed(derive(seed, *place))


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on every device."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture() -> dict[str, Any]:
    """The state of every global generator, as tensors, numbers and lists."""
    import numpy as np

    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [
            kind,
            torch.from_numpy(np.array(keys)).to(torch.int64),
            position,
            has_gauss,
            cached,
        ],
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }


def restore(states: Mapping[str, Any]) -> None:
    """Restore what `capture` returned; devices that are not in it are left unchanged."""
    import numpy as np

    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, index)
