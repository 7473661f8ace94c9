"""Distances against numbers worked out by hand and against torch, weights against their derivation."""

import math

import pytest
import torch
import torch.nn.functional as F

from musubi.flow import losses, times

ERROR = torch.linspace(-3, 3, 25)


def test_plain_distances_are_those_of_torch() -> None:
    zero = torch.zeros_like(ERROR)
    for kind, of_torch in (("l2", F.mse_loss), ("l1", F.l1_loss)):
        found = losses.distance(ERROR, kind)
        torch.testing.assert_close(found, of_torch(ERROR, zero, reduction="none"))


def test_a_large_c_is_a_square_and_a_small_one_a_line() -> None:
    wide, narrow = torch.tensor(1e3), torch.tensor(1e-4)
    torch.testing.assert_close(
        losses.distance(ERROR, "huber", wide), ERROR.square(), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        losses.distance(ERROR, "smooth_l1", narrow), 2 * ERROR.abs(), rtol=0, atol=3e-4
    )


def test_numbers_worked_out_by_hand() -> None:
    error, c = torch.tensor([0.3, -0.4]), torch.tensor(0.4)
    assert losses.distance(error, "huber", c).tolist() == pytest.approx(
        [2 * 0.4 * (0.5 - 0.4), 2 * 0.4 * (math.sqrt(0.32) - 0.4)], rel=1e-5
    )
    assert losses.distance(error, "smooth_l1", c)[0].item() == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.2, 0.2, 0.2]),
        ("exponential", [2.0, 2 * 0.1**0.5, 0.2]),
        ("snr", [2.0, 2 * (0.9 * 0.25 + 0.1), 0.2]),
    ],
)
def test_c_by_noise_level(schedule, expected) -> None:
    t = torch.tensor([0.0, 0.5, 1.0])
    found = losses.huber_c(schedule, t, c=0.1, scale=2.0)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_min_snr_is_that_of_the_paper_for_the_clean_sample_that_a_velocity_means() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise, wrong = torch.randn(3, 16, 8, generator=generator).double().unbind()
    t = torch.linspace(0.05, 0.95, 16).double()
    x, level = times.mix(x0, noise, t), t[:, None]
    velocity = noise - x0 + wrong
    clean = x - level * velocity
    snr = ((1 - t) / t) ** 2
    paper = snr.clamp(max=5) * (clean - x0).square().mean(1)
    ours = losses.min_snr_weight(t, 5.0) * wrong.square().mean(1)
    torch.testing.assert_close(ours.double(), paper, rtol=1e-5, atol=0)
