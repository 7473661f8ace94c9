"""Which of Wan2.2's two experts works at a noise level. No torch in this file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musubi.errors import ConfigError

BOUNDARY_T2V = 0.875
BOUNDARY_I2V = 0.9


def boundary(options: Mapping[str, Any], default: float) -> float:
    """The noise level from which on the high-noise expert works, from 0 to 1.

    Raises:
        ConfigError: It is none.
    """
    given = options.get("timestep_boundary")
    if given is None:
        return default
    level = given / 1000 if given > 1 else given
    if not 0 < level < 1:
        raise ConfigError(
            f"--timestep_boundary {given:g} is no noise level between the two experts.",
            fix=f"Give a number between 0 and 1, such as {default:g}, or the timestep "
            f"{default * 1000:g}.",
        )
    return level


def t2v(options: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The noise levels of Wan2.2's two text-to-video experts: low, high."""
    level = boundary(options, BOUNDARY_T2V)
    return ((0.0, level), (level, 1.0))


def i2v(options: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The noise levels of Wan2.2's two image-to-video experts: low, high."""
    level = boundary(options, BOUNDARY_I2V)
    return ((0.0, level), (level, 1.0))
