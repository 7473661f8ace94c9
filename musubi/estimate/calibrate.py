"""Measure the card in this computer for some seconds, and save the result: `musubi bench
--calibrate`.

What is found is kept as `cards.json` in the user's cache, by the name of the card and the version of
PyTorch; plans take it before any table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from musubi.errors import MusubiError
from musubi.estimate.cards import Card
from musubi.memory import fp8, int8
from musubi.weights.write import atomic

_HEADS, _HEAD = 24, 128
# Kernels of element-wise chains reach this part of what a copy does.
_CHAINS = 0.85
_REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was measured.

    Args:
        card: As plans take it.
        pageable: Bytes a second from host memory that is not page-locked.
    """

    card: Card
    pageable: float


def measure(
    name: str, device: torch.device, *, side: int = 4096, tokens: int = 8192, size: int = 1 << 28
) -> Calibration:
    """Products by type, attention, memory, and the link, each the median of a few tries.

    Args:
        name: Of the card.
        device: It.
        side: Of the matrices.
        tokens: Of attention.
        size: Bytes that are copied.
    """
    generator = torch.Generator(device).manual_seed(0)
    half: dict[str, Any] = {"device": device, "dtype": torch.bfloat16, "generator": generator}
    a, b = torch.randn(side, side, **half), torch.randn(side, side, **half)
    products = 2.0 * side**3
    q, k, v = (torch.randn(1, _HEADS, tokens, _HEAD, **half).requires_grad_() for _ in range(3))
    attended = 4.0 * tokens**2 * _HEADS * _HEAD
    # Random bytes: what a device copies, and a disk or a driver may press together.
    moved = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device, generator=generator)
    other, host = torch.empty_like(moved), torch.empty(size, dtype=torch.uint8)
    locked = host.pin_memory() if device.type == "cuda" else host

    def rate(amount: float, act: Callable[[], Any]) -> float:
        return amount / _seconds(act, device)

    def eight(kind: Any) -> float | None:
        if not kind.multiplies(device):
            return None
        (left, scale_a), (right, scale_b) = kind.rows(a), kind.rows(b)
        return rate(
            products,
            lambda: kind.product(left, right, scale_a, scale_b, None, torch.bfloat16),
        )

    product = rate(products, lambda: F.linear(a, b))
    with torch.no_grad():
        attention = rate(attended, lambda: F.scaled_dot_product_attention(q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    back = torch.randn_like(out)
    card = Card(
        name=name,
        product=product,
        product8=eight(fp8),
        integers=eight(int8) or product,
        attention=attention,
        attention_backward=rate(
            2.5 * attended, lambda: torch.autograd.grad(out, (q, k, v), back, retain_graph=True)
        ),
        memory=_CHAINS * rate(2.0 * size, lambda: other.copy_(moved)),
        link=rate(float(size), lambda: moved.copy_(locked, non_blocking=True)),
    )
    return Calibration(card, rate(float(size), lambda: moved.copy_(host)))


def remembered(name: str) -> Card | None:
    """The saved measurement of this card with this version of PyTorch; None if there is none."""
    found = _read().get(_key(name))
    with contextlib.suppress(TypeError):
        return None if found is None else Card(**found)
    return None


def remember(card: Card) -> Path:
    """Save the measurement for plans, and return the file.

    Raises:
        RunError: It cannot be written.
    """
    path = cache_file()
    known = _read() | {_key(card.name): dataclasses.asdict(card)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return path


def of_this_computer(index: int = 0) -> Card | None:
    """The card in this computer; it is measured now if there is no saved measurement. None: it
    cannot be measured.
    """
    name = torch.cuda.get_device_name(index)
    found = remembered(name)
    if found is not None:
        return found
    try:
        found = measure(name, torch.device("cuda", index)).card
    except RuntimeError:  # memory is full, say: a plan can do without
        return None
    with contextlib.suppress(MusubiError, OSError):
        remember(found)
    return found


def cache_file() -> Path:
    """Where what was measured is kept."""
    home = os.environ.get("XDG_CACHE_HOME")
    if sys.platform == "win32":
        home = home or os.environ.get("LOCALAPPDATA")
    return (Path(home) if home else Path.home() / ".cache") / "musubi" / "cards.json"


def _key(name: str) -> str:
    return f"{name}, torch {torch.__version__}"


def _read() -> dict[str, Any]:
    try:
        found = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(act: Callable[[], Any], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    act()
    wait()
    found = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        act()
        wait()
        found.append(time.perf_counter() - started)
    return max(statistics.median(found), 1e-9)
