"""Noise levels that depend on the size, and guidance with rescaling."""

import math
from types import SimpleNamespace

import pytest
import torch

from musubi.architectures.framepack.sampling import guided, log_shift, sigmas
from musubi.errors import ConfigError


def recipe(**more):
    given = {"steps": 25, "flow_shift": None, "guidance_scale": 1.0, "options": {}}
    return SimpleNamespace(**{**given, **more})


def test_the_shift_grows_with_the_size_up_to_7():
    assert log_shift(256) == pytest.approx(0.5)
    assert log_shift(4096) == pytest.approx(1.15)
    assert math.exp(log_shift(80 * 80 // 4)) == pytest.approx(2.07, abs=5e-3)
    assert math.exp(log_shift(9 * 80 * 80 // 4)) == pytest.approx(7.0)
    assert math.exp(log_shift(8797)) < 7.0 == pytest.approx(math.exp(log_shift(8798)), abs=1e-3)


def test_levels_of_a_given_shift():
    found = sigmas(recipe(steps=4, flow_shift=3.0), tokens=1)
    assert found.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert found.dtype == torch.float32
    by_size = sigmas(recipe(steps=2), tokens=4096)
    k = math.exp(1.15)
    assert by_size.tolist() == pytest.approx([1.0, k / (k + 1), 0.0])


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"flow_shift": 0.0}, {"flow_shift": -1.0}])
def test_levels_that_cannot_be(wrong):
    with pytest.raises(ConfigError):
        sigmas(recipe(**wrong), tokens=1)


def test_rescaling_against_diffusers():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(2, 16, 3, 4, 6, generator=generator) for _ in range(2))
    called = {"p": positive, "n": negative}
    for part in (0.0, 0.7, 1.0):
        given = recipe(guidance_scale=5.0, options={"guidance_rescale": part})
        plain = negative + 5.0 * (positive - negative)
        found = guided(called.__getitem__, "p", "n", given, None)
        torch.testing.assert_close(found, rescale_noise_cfg(plain, positive, part))
    assert guided(called.__getitem__, "p", None, recipe(), None) is positive
