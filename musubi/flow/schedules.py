"""The noise levels of a solver's steps, from noise to clean, and the timesteps that the network
gets.

The levels follow the sampling code that its authors released with the first model here, which places
those of UniPC and of DPM++ differently;
`vanilla` and `lcm` have the plain shifted line of Esser et al. 2024.
"""

from __future__ import annotations

import numpy as np
import torch

from musubi.errors import ConfigError, did_you_mean
from musubi.flow.times import shift as shifted

SCHEDULES = ("unipc", "dpm++", "vanilla", "lcm")
TRUNCATED = frozenset({"unipc", "dpm++"})  # solvers whose timesteps are cut to whole numbers

# The largest level of a table 1 - linspace(1, 1/1000, 1000), held in float32.
LARGEST = torch.tensor(0.999).item()


def sigmas(solver: str, steps: int, shift: float) -> torch.Tensor:
    """The noise levels of `steps` steps, float64 (steps + 1,), falling; the last one is 0.

    Unrounded, because timesteps are cut to whole numbers: of levels in float32, 31 of 112 usual
    combinations of solver, steps and shift would have one that is off by one.

    Args:
        solver: "unipc" starts at 0.999 before the shift, the others at 1.
        steps: Number of denoising steps, at least 1.
        shift: k of s' = k s / (1 + (k - 1) s).

    Raises:
        ConfigError: An unknown solver, no step, or a shift that is not positive.
    """
    if solver not in SCHEDULES:
        raise ConfigError(f"There is no solver {solver!r}.", fix=did_you_mean(solver, SCHEDULES))
    if steps < 1:
        raise ConfigError(
            f"{steps} denoising steps make nothing.", fix="Give --infer_steps 1 or more."
        )
    if shift <= 0:
        raise ConfigError(
            f"A flow shift of {shift:g} is not possible.", fix="Give --flow_shift > 0."
        )
    start = LARGEST if solver == "unipc" else 1.0
    # NumPy's line, whose last bits the released code has too: torch's own is symmetrical.
    return shifted(torch.from_numpy(np.linspace(start, 0.0, steps + 1)), shift)


def steps_taken(steps: int, strength: float) -> int:
    """How many of `steps` are run (the last ones) when denoising starts from clean latents with
    noise added.

    >>> steps_taken(50, 0.8)
    40

    Raises:
        ConfigError: `strength` is not above 0 and at most 1, or leaves no step.
    """
    if not 0 < strength <= 1:
        raise ConfigError(
            f"A strength of {strength:g} is not possible.",
            fix="Give --strength above 0, which keeps the most, up to 1, which keeps nothing.",
        )
    taken = int(steps * strength)
    if taken < 1:
        raise ConfigError(
            f"A strength of {strength:g} takes none of {steps} steps.",
            fix=f"Give --strength {1 / steps:.2g} or more, or more --infer_steps.",
        )
    return taken


def timesteps(solver: str, levels: torch.Tensor) -> torch.Tensor:
    """The timestep that the network gets at each step, float64 (steps,), from 0 to 1000.

    Args:
        solver: Some solvers' timesteps are cut to whole numbers.
        levels: As `sigmas` gives them, unrounded.

    >>> timesteps("unipc", sigmas("unipc", 10, 5.0)).int().tolist()
    [999, 978, 952, 920, 882, 833, 768, 681, 555, 356]
    """
    scaled = levels[:-1].double() * 1000
    return scaled.trunc() if solver in TRUNCATED else scaled
