"""Solvers of the flow's equation dx/dt = v(x, t), from noise (t = 1) to a clean sample (t = 0).

Each is a function `(predict, x, sigmas, timesteps, callback)`: `sigmas` (steps + 1) are the levels
where x is, `timesteps` (steps) what the network is told there (0 to 1000), and the state is float32.
A step's coefficients are Python floats. With alpha = 1 - sigma and lambda = ln(alpha / sigma), both
multistep solvers integrate the prediction of the clean sample, m = x - sigma v, over lambda.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from musubi.errors import ConfigError, did_you_mean
from musubi.flow.predictions import Callback, Predict, Solver, called
from musubi.flow.unipc_flow import unipc_flow


def euler(
    predict: Predict,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    timesteps: torch.Tensor,
    callback: Callback | None = None,
) -> torch.Tensor:
    """First order: x += v (sigma' - sigma)."""
    levels = sigmas.tolist()
    for i in range(len(levels) - 1):
        x = x + called(predict, x, timesteps, i) * (levels[i + 1] - levels[i])
        if callback is not None:
            callback(i, x)
    return x


def dpmpp_2m(
    predict: Predict,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    timesteps: torch.Tensor,
    callback: Callback | None = None,
) -> torch.Tensor:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    The first and the last step are of first order.
    """
    levels = sigmas.tolist()
    last = len(levels) - 2
    earlier: torch.Tensor | None = None
    for i in range(last + 1):
        s, t = levels[i], levels[i + 1]
        clean = x - s * called(predict, x, timesteps, i)
        keep, add = _first_order(s, t)
        slope = clean
        if earlier is not None and i < last:
            ratio = (_log_snr(s) - _log_snr(levels[i - 1])) / (_log_snr(t) - _log_snr(s))
            slope = clean + (clean - earlier) * (0.5 / ratio)
        x = keep * x + add * slope
        earlier = clean
        if callback is not None:
            callback(i, x)
    return x


def unipc(
    predict: Predict,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    timesteps: torch.Tensor,
    callback: Callback | None = None,
) -> torch.Tensor:
    """UniPC of order 2 with B(h) = exp(h) - 1 (Zhao et al. 2023, arXiv:2302.04867, algorithms 5, 8).

    One evaluation serves a step's corrector and the next step's predictor. The first and the last
    predictor are of first order.
    """
    levels = sigmas.tolist()
    last = len(levels) - 2
    history: list[tuple[float, torch.Tensor]] = []  # (level, clean) of at most the last two steps
    before = x
    order = 1
    for i in range(last + 1):
        s, t = levels[i], levels[i + 1]
        clean = x - s * called(predict, x, timesteps, i)
        if history:
            x = _correct(before, history, (s, clean), order)
        history = [*history[-1:], (s, clean)]
        order = 2 if 0 < i < last else 1
        before = x
        x = _predict(before, history, t, order)
        if callback is not None:
            callback(i, x)
    return x


def lcm(
    predict: Predict,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    timesteps: torch.Tensor,
    callback: Callback | None = None,
    *,
    seed: int = 0,
) -> torch.Tensor:
    """Sampling of consistency models (Luo et al. 2023, arXiv:2310.04378): each step goes all the
    way to the clean sample, and then back to the next level with new noise.

    For networks that were distilled to few steps. The noise is drawn on the CPU, from `seed`.
    """
    # Not the seed itself: the noise that denoising starts from may have been drawn from that.
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + 1) % 2**63)
    levels = sigmas.tolist()
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        x = x - s * called(predict, x, timesteps, i)
        if t > 0:
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float32)
            x = (1 - t) * x + t * noise.to(x)
        if callback is not None:
            callback(i, x)
    return x


SOLVERS: dict[str, Solver] = {"unipc": unipc, "dpm++": dpmpp_2m, "vanilla": euler, "lcm": lcm}
NAMES: tuple[str, ...] = tuple(SOLVERS)
# Those that only a task's own `solver_names` mean.
OF_TASKS: dict[str, Solver] = {"unipc-flow": unipc_flow}


def solve(
    name: str,
    predict: Predict,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    timesteps: torch.Tensor,
    callback: Callback | None = None,
    *,
    seed: int = 0,
) -> torch.Tensor:
    """Run the solver of that name from the noise `x` down to the last level; returns float32.

    The levels are rounded to float32, as the states they belong to; the timesteps are not.
    `seed` decides the noise of a solver that draws some.

    Raises:
        ConfigError: There is no solver of that name.
    """
    if name not in SOLVERS and name not in OF_TASKS:
        raise ConfigError(f"There is no solver {name!r}.", fix=did_you_mean(name, NAMES))
    solver = partial(lcm, seed=seed) if name == "lcm" else {**SOLVERS, **OF_TASKS}[name]
    return solver(predict, x.float(), sigmas.float(), timesteps, callback)


def _log_snr(sigma: float) -> float:
    if sigma <= 0:
        return math.inf
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def _first_order(s: float, t: float) -> tuple[float, float]:
    """(a, b) of x' = a x + b m, from level s to t: sigma_t / sigma_s, and alpha_t (1 - e^-h).

    Written so that s = 1 and t = 0, where lambda is infinite, need no special case.
    """
    return t / s, (1 - t) - (1 - s) * t / s


def _predict(
    x: torch.Tensor, history: list[tuple[float, torch.Tensor]], t: float, order: int
) -> torch.Tensor:
    s, clean = history[-1]
    keep, add = _first_order(s, t)
    slope = clean
    if order == 2:
        level, earlier = history[-2]
        ratio = (_log_snr(level) - _log_snr(s)) / (_log_snr(t) - _log_snr(s))
        slope = clean + 0.5 * (earlier - clean) / ratio
    return keep * x + add * slope


def _correct(
    x: torch.Tensor,
    history: list[tuple[float, torch.Tensor]],
    now: tuple[float, torch.Tensor],
    order: int,
) -> torch.Tensor:
    """UniC: redo the step that led to `now`, with the network's prediction at `now`."""
    s, clean = history[-1]
    t, answer = now
    keep, add = _first_order(s, t)
    if order == 1:
        return keep * x + add * (clean + 0.5 * (answer - clean))
    level, earlier = history[-2]
    h = _log_snr(t) - _log_snr(s)
    ratio = (_log_snr(level) - _log_snr(s)) / h
    # Two conditions on the weights of both differences: they sum to b1, and b2 is their first moment.
    grown = math.expm1(-h)
    phi = grown / -h - 1
    b1 = phi / grown
    b2 = 2 * (phi / -h - 0.5) / grown
    first = (b2 - b1) / (ratio - 1)
    slope = clean + first * (earlier - clean) / ratio + (b1 - first) * (answer - clean)
    return keep * x + add * slope
