"""Wan's autoencoder against diffusers, float32, toy sizes, through the real key maps."""

import pytest
import torch

from musubi.encoders.wan_vae import keys
from musubi.encoders.wan_vae.component import VAE
from musubi.testing.twins import fill

pytestmark = pytest.mark.parity


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_full_size_vae_has_the_released_names_and_shapes():
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        ours = VAE.build(dim=96, z_dim=16).state_dict()
        oracle = AutoencoderKLWan().state_dict()
    diffusers = next(d for d in keys.VAE if d.name == "diffusers")
    reading = diffusers.reading(oracle)
    assert {name: oracle[s.names[0]].shape for name, s in reading.items()} == {
        name: tensor.shape for name, tensor in ours.items()
    }
    assert len(ours) == 194


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_vae(frames, loaded):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    oracle = fill(AutoencoderKLWan(base_dim=8, z_dim=16))
    ours = loaded(VAE, oracle.state_dict())
    mean = torch.tensor(oracle.config.latents_mean).view(1, 16, 1, 1, 1)
    std = torch.tensor(oracle.config.latents_std).view(1, 16, 1, 1, 1)
    x = torch.rand(2, 3, frames, 48, 32) * 2 - 1
    expected = (oracle.encode(x).latent_dist.mode() - mean) / std
    found = ours.encode(x)
    assert found.shape == (2, 16, (frames - 1) // 4 + 1, 6, 4)
    assert error(found, expected) < 1e-5
    z = torch.randn(found.shape)
    decoded = ours.decode(z)
    assert decoded.shape == x.shape
    expected = oracle.decode(z * std + mean).sample
    assert (expected.abs() < 1).float().mean() > 0.5, "clamping must not hide differences"
    assert error(decoded, expected) < 1e-5
