"""The solvers: against diffusers on the same levels, their order of convergence, and edge cases."""

import itertools
import math

import pytest
import torch

from musubi.errors import ConfigError
from musubi.flow import schedules, solvers


def field(x, t):
    """A velocity that is neither linear in x nor constant in t; mixes neighbours."""
    level = t.reshape(-1, 1, 1, 1, 1).to(x.dtype)
    return torch.sin(1.3 * x + level) + 0.5 * x.roll(1, -1) * level - 0.3 * torch.cos(4 * level)


def noise():
    return torch.randn(2, 4, 3, 5, 6, generator=torch.Generator().manual_seed(3))


def reference(scheduler, x, levels, times):
    scheduler.set_timesteps(len(times))
    scheduler.sigmas, scheduler.timesteps = levels.float(), times.clone()
    scheduler._step_index, scheduler._begin_index = None, 0
    for step in times:
        v = field(x, torch.full((len(x),), float(step) / 1000))
        x = scheduler.step(v, step, x, return_dict=False)[0]
    return x


def twin(name):
    import diffusers

    if name == "lcm":
        return diffusers.FlowMatchLCMScheduler()
    if name == "vanilla":
        return diffusers.FlowMatchEulerDiscreteScheduler()
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
    if name == "dpm++":
        return diffusers.DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++", solver_type="midpoint", final_sigmas_type="zero", **flow
        )
    return diffusers.UniPCMultistepScheduler(solver_order=2, solver_type="bh2", **flow)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20])
@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("name", solvers.NAMES)
def test_agrees_with_diffusers_on_the_same_levels(name, shift, steps, monkeypatch):
    levels = schedules.sigmas(name, steps, shift)
    times = schedules.timesteps(name, levels)
    x = noise()
    if name == "lcm":  # the two draw other noise, of which the result is a function all the same
        drawn = noise().flip(0)
        monkeypatch.setattr(torch, "randn", lambda *_, **__: drawn)
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor", lambda *_, **__: drawn
        )
    ours = solvers.solve(name, lambda x, t, i: field(x, t), x, levels, times)
    theirs = reference(twin(name), x, levels, times)
    error = (ours - theirs).norm() / theirs.norm()
    assert ours.dtype == torch.float32
    assert error < 1e-5, f"{name}: {error:.2e}"


def _final_error(name, steps, exact, x):
    # The exact times, from a level where lambda is finite: the theory's setting.
    levels = torch.linspace(0.95, 0.05, steps + 1, dtype=torch.float64)
    solver = solvers.SOLVERS[name]
    out = solver(lambda x, t, i: field(x, t), x, levels, levels[:-1] * 1000, None)
    return (out - exact).norm().item()


@pytest.mark.parametrize(("name", "order"), [("vanilla", 1), ("dpm++", 2), ("unipc", 2)])
def test_converges_at_its_order(name, order):
    x = noise().double()
    fine = torch.linspace(0.95, 0.05, 2001, dtype=torch.float64).tolist()
    exact = x
    for s, t in itertools.pairwise(fine):  # the classical method of order 4

        def v(y, at):
            return field(y, torch.full((len(y),), at, dtype=torch.float64))

        h = t - s
        k1 = v(exact, s)
        k2 = v(exact + h / 2 * k1, s + h / 2)
        k3 = v(exact + h / 2 * k2, s + h / 2)
        exact = exact + h / 6 * (k1 + 2 * k2 + 2 * k3 + v(exact + h * k3, t))
    coarse, halved = (_final_error(name, n, exact, x) for n in (240, 480))
    assert math.log2(coarse / halved) > order - 0.15


@pytest.mark.parametrize("name", solvers.NAMES)
def test_straight_paths_are_solved_in_one_step(name):
    x0, eps = noise(), noise().flip(0)
    levels = schedules.sigmas(name, 1, 3.0)
    start = (1 - levels[0]) * x0 + levels[0] * eps
    out = solvers.solve(
        name, lambda x, t, i: eps - x0, start, levels, schedules.timesteps(name, levels)
    )
    torch.testing.assert_close(out, x0, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", solvers.NAMES)
def test_first_level_may_be_pure_noise(name):
    levels = torch.linspace(1, 0, 6)
    out = solvers.solve(name, lambda x, t, i: field(x, t), noise(), levels, levels[:-1] * 1000)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", solvers.NAMES)
def test_calls_the_network_once_a_step_and_reports_each(name):
    levels = schedules.sigmas(name, 4, 5.0)
    times = schedules.timesteps(name, levels)
    seen, told = [], []

    def predict(x, t, i):
        seen.append((i, t * 1000))
        return torch.zeros_like(x, dtype=torch.bfloat16)

    x = noise().bfloat16()
    out = solvers.solve(name, predict, x, levels, times, lambda i, x: told.append((i, x.dtype)))
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    assert all(t.shape == (2,) for _, t in seen)
    assert [round(t[0].item(), 3) for _, t in seen] == [round(s, 3) for s in times.tolist()]
    assert told == [(i, torch.float32) for i in range(4)]
    assert out.dtype == torch.float32


def test_the_same_noise_gives_the_same_answer_and_is_left_alone():
    x = noise()
    kept = x.clone()
    levels = schedules.sigmas("unipc", 5, 3.0)
    times = schedules.timesteps("unipc", levels)
    runs = [solvers.solve("unipc", lambda x, t, i: field(x, t), x, levels, times) for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(x, kept)


def test_unknown_solver_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no solver 'unipcc'.*Did you mean 'unipc'\?"):
        solvers.solve("unipcc", lambda x, t, i: x, noise(), torch.ones(2), torch.ones(1))


def test_a_solver_that_draws_noise_draws_it_from_the_seed():
    levels = schedules.sigmas("lcm", 4, 5.0)
    times = schedules.timesteps("lcm", levels)

    def run(seed):
        return solvers.solve("lcm", lambda x, t, i: field(x, t), noise(), levels, times, seed=seed)

    assert torch.equal(run(7), run(7))
    assert not torch.equal(run(7), run(8))
    drawn = []

    def keep(i, x):
        drawn.append(x)

    start = torch.randn(noise().shape, generator=torch.Generator().manual_seed(7))
    solvers.solve("lcm", lambda x, t, i: x / t[0], start, levels, times, keep, seed=7)
    first = drawn[0] / levels[1].float()  # the clean sample is zero: what is left is the noise
    assert abs(torch.corrcoef(torch.stack([first.flatten(), start.flatten()]))[0, 1]) < 0.2
