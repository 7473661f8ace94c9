"""Noise levels for training, how a sample is mixed with noise, and the target of the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from musubi.errors import ConfigError

Mode = Literal["sigma", "uniform", "sigmoid", "shift", "logsnr", "flux_shift"]
Weighting = Literal["logit_normal", "mode", "cosmap", "sigma_sqrt", "none"]
MODES: tuple[Mode, ...] = ("sigma", "uniform", "sigmoid", "shift", "logsnr", "flux_shift")
WEIGHTINGS: tuple[Weighting, ...] = ("logit_normal", "mode", "cosmap", "sigma_sqrt", "none")

LEVELS = 1000  # the scale of `--min_timestep`, and of the discrete levels of `sigma`
ATTEMPTS = 1000  # draws of a whole batch before a range is called empty


def shift(s: torch.Tensor, k: float | torch.Tensor) -> torch.Tensor:
    """Move noise levels towards noise: k s / (1 + (k - 1) s) (Esser et al. 2024, eq. 23).

    >>> shift(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist()
    [0.0, 0.75, 1.0]
    """
    return k * s / (1 + (k - 1) * s)


def flux_mu(tokens: int | float) -> float:
    """Log of the shift FLUX uses for that many image tokens: linear, 0.5 at 256, 1.15 at 4096."""
    return 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)


def shift_at(tokens: int | float, low: tuple[float, float], high: tuple[float, float]) -> float:
    """A shift whose logarithm is linear in the number of tokens: `low` and `high` are two points of it.

    >>> round(shift_at(4096, (256, 0.5), (4096, 1.15)), 4)
    3.1582
    """
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return math.exp(low[1] + slope * (tokens - low[0]))


def mix(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x_t = (1 - t) x0 + t noise, with `t` (B,) over the first axis; in float32 or wider."""
    dtype = torch.promote_types(torch.float32, x0.dtype)
    level = t.to(dtype).reshape(-1, *([1] * (x0.ndim - 1)))
    return (1 - level) * x0.to(dtype) + level * noise.to(dtype)


def velocity(x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """dx_t/dt = noise - x0: what the network is asked for; in float32 or wider."""
    dtype = torch.promote_types(torch.float32, x0.dtype)
    return noise.to(dtype) - x0.to(dtype)


@dataclass(frozen=True, kw_only=True)
class Density:
    """How noise levels are distributed in training.

    Args:
        mode: `sigma`: the density of `weighting_scheme`, shifted, on the levels 1/1000 … 1000/1000;
            `uniform`; `sigmoid`: logistic-normal; `shift`: `sigmoid`, shifted; `logsnr`: the log
            signal-to-noise ratio is normal; `flux_shift`: `sigmoid`, shifted by what FLUX uses for
            that many tokens.
        shift: k of `sigma` and `shift`; larger means more noise.
        sigmoid_scale: Standard deviation before the sigmoid of `sigmoid`, `shift`, `flux_shift`.
        weighting_scheme: In mode `sigma`, "logit_normal" and "mode" choose the density; see
            `loss_weight` for the others.
        logit_mean: Of "logit_normal" (of the noise level: a positive mean favours noise) and of
            `logsnr` (of the signal-to-noise ratio: a positive mean favours clean samples).
        logit_std: Likewise.
        mode_scale: s of "mode" (Esser et al. 2024, eq. 20).
        min_timestep: Lowest noise level, on 0 to 1000, in every mode; None is 0.
        max_timestep: Highest noise level, likewise; None is 1000.
        preserve_shape: Draw again what falls outside the range, instead of squeezing the whole
            distribution into it.
    """

    mode: Mode = "sigma"
    shift: float = 1.0
    sigmoid_scale: float = 1.0
    weighting_scheme: Weighting = "none"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    min_timestep: float | None = None
    max_timestep: float | None = None
    preserve_shape: bool = False

    def __post_init__(self) -> None:
        low, high = self.range
        if not 0 <= low < high <= 1:
            raise ConfigError(
                f"--min_timestep {self.min_timestep} and --max_timestep {self.max_timestep} "
                "leave no noise level to train.",
                fix="They are noise levels: give 0 <= min < max <= 1000.",
            )

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest noise level, on 0 to 1."""
        low = 0.0 if self.min_timestep is None else self.min_timestep / LEVELS
        high = 1.0 if self.max_timestep is None else self.max_timestep / LEVELS
        return low, high

    def sample(
        self,
        n: int,
        *,
        tokens: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """Draw `n` noise levels, float32 (n,), on the generator's device, and move them to `device`.

        Raises:
            ConfigError: The range holds almost none of the distribution, or `flux_shift` was not
                told how many tokens a sample has.
        """
        low, high = self.range
        if self.preserve_shape:
            t = self._within(n, tokens, generator)
        else:
            t = low + self._draw(n, tokens, generator) * (high - low)
        if self.mode == "sigma":
            t = (torch.floor(t * LEVELS) + 1) / LEVELS
        # Without waiting: the host would stand still until the step before is computed.
        return t.clamp(low, high).to(device, non_blocking=True)

    def _draw(self, n: int, tokens: int | None, generator: torch.Generator | None) -> torch.Tensor:
        place = torch.device("cpu") if generator is None else generator.device
        if self.mode == "uniform" or (
            self.mode == "sigma" and self.weighting_scheme != "logit_normal"
        ):
            u = torch.rand(n, generator=generator, device=place)
            if self.mode == "uniform":
                return u
            if self.weighting_scheme == "mode":
                u = 1 - u - self.mode_scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
            return shift(u, self.shift)
        z = torch.randn(n, generator=generator, device=place)
        if self.mode == "sigma":
            return shift(torch.sigmoid(self.logit_mean + self.logit_std * z), self.shift)
        if self.mode == "logsnr":
            return torch.sigmoid(-(self.logit_mean + self.logit_std * z) / 2)
        s = torch.sigmoid(self.sigmoid_scale * z)
        if self.mode == "sigmoid":
            return s
        return shift(s, self.shift if self.mode == "shift" else _flux_shift(tokens))

    def _within(
        self, n: int, tokens: int | None, generator: torch.Generator | None
    ) -> torch.Tensor:
        low, high = self.range
        kept: list[torch.Tensor] = []
        for _ in range(ATTEMPTS):
            t = self._draw(n, tokens, generator)
            kept.append(t[(t >= low) & (t <= high)])
            if sum(map(len, kept)) >= n:
                return torch.cat(kept)[:n]
        raise ConfigError(
            f"Almost no noise level of {self.mode!r} falls between --min_timestep "
            f"{low * LEVELS:g} and --max_timestep {high * LEVELS:g}.",
            fix="Widen the range, or leave --preserve_distribution_shape out.",
        )


def sample_times(
    n: int,
    *,
    tokens: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    **density: Any,
) -> torch.Tensor:
    """Draw `n` noise levels from `Density(**density)`."""
    return Density(**density).sample(n, tokens=tokens, generator=generator, device=device)


def _flux_shift(tokens: int | None) -> float:
    if tokens is None:
        raise ConfigError(
            "--timestep_sampling flux_shift needs the number of tokens of a sample.",
            fix="Use --timestep_sampling shift with --discrete_flow_shift.",
        )
    return math.exp(flux_mu(tokens))


def loss_weight(scheme: Weighting, t: torch.Tensor) -> torch.Tensor:
    """The weight of each sample's loss, float32, shaped like `t`.

    "sigma_sqrt" is t^-2, with t no smaller than 1/1000; "cosmap" is 2 / (pi (1 - 2t + 2t^2))
    (Esser et al. 2024, section 3.1); the others weigh all alike.
    """
    t = t.float()
    if scheme == "sigma_sqrt":
        return t.clamp(min=1 / LEVELS) ** -2.0
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * t + 2 * t**2))
    return torch.ones_like(t)
