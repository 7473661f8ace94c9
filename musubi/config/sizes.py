"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from musubi.errors import ConfigError

_UNITS = {"": 2**30, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6}
_UNITS |= {"gb": 10**9, "g": 2**30, "m": 2**20}


def parse_bytes(text: str) -> int:
    """`12GiB`, `12000MiB`, `12GB` or `12` (GiB) as bytes.

    Raises:
        ConfigError: It is no amount of memory.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].lower() not in _UNITS or not float(found[1]):
        raise ConfigError(f"{text!r} is no amount of memory.", fix="Write 12GiB, say.")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def gibibytes(size: float) -> float:
    """Bytes in GiB."""
    return size / 2**30
