"""The flow's UniPC: against diffusers' with alpha taken as 1, and its edge cases."""

import pytest
import torch

from musubi.flow.unipc_flow import unipc_flow


def field(x, t):
    level = t.reshape(-1, 1, 1, 1, 1).to(x.dtype)
    return torch.sin(1.3 * x + level) + 0.5 * x.roll(1, -1) * level - 0.3 * torch.cos(4 * level)


def noise():
    return torch.randn(2, 4, 3, 5, 6, generator=torch.Generator().manual_seed(3))


def levels(steps, shift=3.0):
    line = torch.linspace(1, 0, steps + 1)
    return shift / (shift + (1 / line - 1))


def reference(x, sigmas):
    from diffusers import UniPCMultistepScheduler

    class WithoutAlpha(UniPCMultistepScheduler):
        def _sigma_to_alpha_sigma_t(self, sigma):
            return torch.ones_like(sigma), sigma

    steps = len(sigmas) - 1
    scheduler = WithoutAlpha(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        solver_order=max(min(3, steps - 1), 1),
        solver_type="bh1",
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = sigmas.clone(), sigmas[:-1] * 1000
    scheduler._step_index, scheduler._begin_index = None, 0
    for step in scheduler.timesteps[:-1]:
        v = field(x, torch.full((len(x),), float(step) / 1000))
        x = scheduler.step(v, step, x, return_dict=False)[0]
    # What it would step to from here is at the level 0, where lambda is infinite.
    return x - sigmas[-2] * field(x, torch.full((len(x),), float(sigmas[-2])))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 25])
def test_agrees_with_diffusers(steps):
    sigmas, x = levels(steps), noise()
    asked = []

    def predict(x, t, i):
        asked.append(i)
        return field(x, t)

    found = unipc_flow(predict, x, sigmas, sigmas[:-1] * 1000)
    assert asked == list(range(steps))
    expected = reference(x, sigmas)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


def test_one_step_is_the_first_prediction():
    sigmas, x = levels(1), noise()
    found = unipc_flow(lambda x, t, i: field(x, t), x, sigmas, sigmas[:-1] * 1000)
    torch.testing.assert_close(found, x - field(x, torch.ones(2)))


def test_more_steps_come_nearer_by_more_than_the_second_order():
    def final(steps):
        line = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        sigmas = torch.cat([line[:-1], line[-1:]])
        predict = lambda x, t, i: torch.sin(t.reshape(-1, 1, 1, 1, 1) * 2) * x  # noqa: E731
        # The last prediction has the error of one Euler step from the last level: compare the state
        # at one level by solving down to a tenth.
        sigmas = 0.1 + 0.9 * sigmas
        states = []

        def spy(x, t, i):
            states.append(x)
            return predict(x, t, i)

        unipc_flow(
            spy, noise().double(), torch.cat([sigmas, sigmas[-1:] * 0]), torch.cat([sigmas]) * 1000
        )
        return states[-1]

    exact = final(256)
    errors = [(final(n) - exact).norm().item() for n in (8, 16, 32)]
    assert errors[0] / errors[1] > 5
    assert errors[1] / errors[2] > 5


def test_every_step_is_told():
    sigmas = levels(4)
    seen = []
    unipc_flow(lambda x, t, i: x, noise(), sigmas, sigmas[:-1] * 1000, lambda i, x: seen.append(i))
    assert seen == [0, 1, 2, 3]
