"""Training times: every density, its range and shift, the weights, and the mixture."""

import math

import pytest
import torch

from musubi.errors import ConfigError
from musubi.flow import times

N = 20_000


def draw(**density):
    generator = torch.Generator().manual_seed(0)
    return times.sample_times(N, generator=generator, **density)


@pytest.mark.parametrize("mode", times.MODES)
def test_same_generator_same_times(mode):
    tokens = 1560 if mode == "flux_shift" else None
    first, second = draw(mode=mode, tokens=tokens), draw(mode=mode, tokens=tokens)
    assert torch.equal(first, second)
    assert first.shape == (N,)
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1


def test_uniform_is_uniform():
    t = draw(mode="uniform")
    assert abs(t.mean() - 0.5) < 0.01
    assert abs(t.var() - 1 / 12) < 0.003


def test_sigmoid_has_its_median_and_spread():
    for scale in (0.5, 1.0, 2.0):
        t = draw(mode="sigmoid", sigmoid_scale=scale)
        assert abs(t.median() - 0.5) < 0.01 * scale
        assert abs(torch.logit(t).std() - scale) < 0.02 * scale


def test_shift_moves_the_median_towards_noise():
    t = draw(mode="shift", shift=3.0)
    assert abs(t.median() - 0.75) < 0.01
    assert torch.allclose(t, times.shift(draw(mode="sigmoid"), 3.0))


def test_sigma_visits_the_thousand_levels_uniformly():
    t = draw()
    assert torch.allclose(t * 1000, (t * 1000).round(), atol=1e-3)
    assert t.min() >= 0.001 - 1e-7
    assert t.max() == 1
    assert abs(t.mean() - 0.5005) < 0.01


def test_sigma_honours_the_shift():
    assert abs(draw(shift=3.0).median() - 0.75) < 0.015


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("mode", times.MODES)
def test_min_and_max_are_noise_levels_in_every_mode(mode, preserve):
    t = draw(mode=mode, tokens=1000, min_timestep=100, max_timestep=400, preserve_shape=preserve)
    assert t.min() >= 0.1 - 1e-6
    assert t.max() <= 0.4 + 1e-6
    assert t.std() > 0.02


def test_preserved_shape_is_the_conditional_distribution():
    kept = draw(mode="sigmoid", min_timestep=500, preserve_shape=True)
    free = draw(mode="sigmoid")
    expected = free[free >= 0.5]
    assert abs(kept.median() - expected.median()) < 0.01
    squeezed = draw(mode="sigmoid", min_timestep=500)
    assert abs(squeezed.median() - 0.75) < 0.01


def test_logit_normal_mean_is_of_the_noise_level():
    t = draw(weighting_scheme="logit_normal", logit_mean=1.0, logit_std=0.5)
    assert abs(t.median() - 1 / (1 + math.exp(-1))) < 0.01


def test_mode_density_favours_the_middle_or_the_ends():
    def middle(scale):
        t = draw(weighting_scheme="mode", mode_scale=scale)
        return ((t > 0.4) & (t < 0.6)).float().mean()

    assert middle(1.29) > middle(0.0) + 0.02
    assert middle(-0.8) < middle(0.0) - 0.02


def test_logsnr_mean_is_of_the_signal():
    t = draw(mode="logsnr", logit_mean=2.0, logit_std=1.0)
    assert abs(t.median() - 1 / (1 + math.e)) < 0.01


def test_flux_shift_follows_the_number_of_tokens():
    for tokens, mu in ((256, 0.5), (4096, 1.15)):
        k = math.exp(mu)
        t = draw(mode="flux_shift", tokens=tokens)
        assert abs(t.median() - k / (1 + k)) < 0.01


@pytest.mark.parametrize("bounds", [(400, 400), (600, 300), (-1, 500), (0, 1001)])
def test_an_empty_range_is_refused(bounds):
    with pytest.raises(ConfigError, match="leave no noise level to train"):
        draw(min_timestep=bounds[0], max_timestep=bounds[1])


def test_a_range_without_mass_is_refused():
    with pytest.raises(ConfigError, match="Almost no noise level of 'sigmoid'"):
        times.sample_times(
            4, mode="sigmoid", sigmoid_scale=0.01, min_timestep=900, preserve_shape=True
        )


def test_flux_shift_without_tokens_is_refused():
    with pytest.raises(ConfigError, match="flux_shift needs the number of tokens"):
        draw(mode="flux_shift")


def test_loss_weights():
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert times.loss_weight("sigma_sqrt", t).tolist() == pytest.approx([1e6, 16, 4, 1])
    cosmap = [2 / (math.pi * d) for d in (1.0, 0.625, 0.5, 1.0)]
    assert times.loss_weight("cosmap", t).tolist() == pytest.approx(cosmap)
    for scheme in ("none", "mode", "logit_normal"):
        assert times.loss_weight(scheme, t).tolist() == [1, 1, 1, 1]


def test_mix_and_velocity_are_the_path_and_its_slope():
    x0, noise = torch.randn(2, 3, 1, 4, 4), torch.randn(2, 3, 1, 4, 4)
    t = torch.tensor([0.25, 1.0])
    x = times.mix(x0, noise, t)
    torch.testing.assert_close(x[0], 0.75 * x0[0] + 0.25 * noise[0])
    torch.testing.assert_close(x[1], noise[1])
    torch.testing.assert_close(x - t.view(-1, 1, 1, 1, 1) * times.velocity(x0, noise), x0)


def test_mix_of_bfloat16_latents_is_float32():
    x0, noise = torch.ones(1, 2, dtype=torch.bfloat16), torch.zeros(1, 2, dtype=torch.bfloat16)
    assert times.mix(x0, noise, torch.tensor([0.123456])).dtype == torch.float32
    assert times.velocity(x0, noise).dtype == torch.float32
