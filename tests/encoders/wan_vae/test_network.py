"""Wan's autoencoder: causality, its cache, tiles, lengths."""

import pytest
import torch

from musubi.encoders.wan_vae.component import VAE
from musubi.testing.twins import fill


@pytest.fixture
def autoencoder():
    return fill(VAE.build(**VAE.tiny))


def test_the_past_never_sees_the_future(autoencoder):
    x = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    z = torch.randn(1, 16, 3, 4, 4)
    other_x, other_z = x.clone(), z.clone()
    other_x[:, :, 5:], other_z[:, :, 2:] = 0, 0
    assert torch.equal(autoencoder.encode(x)[:, :, :2], autoencoder.encode(other_x)[:, :, :2])
    one, other = autoencoder.decode(z), autoencoder.decode(other_z)
    assert torch.equal(one[:, :, :5], other[:, :, :5])
    assert not torch.equal(one[:, :, 5:], other[:, :, 5:])


def test_a_cache_on_the_host_changes_nothing(autoencoder):
    x = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    z = autoencoder.encode(x)
    assert torch.equal(z, autoencoder.encode(x, cache_on_host=True))
    assert torch.equal(autoencoder.decode(z), autoencoder.decode(z, cache_on_host=True))


def test_tiles_cover_the_picture(autoencoder):
    x = torch.rand(1, 3, 5, 96, 160) * 2 - 1
    whole, tiled = autoencoder.encode(x), autoencoder.encode(x, tile=64)
    assert whole.shape == tiled.shape
    assert torch.isfinite(tiled).all()
    assert torch.equal(whole, autoencoder.encode(x, tile=256))  # one tile holds it all
    assert autoencoder.decode(whole, tile=64).shape == x.shape


def test_lengths_that_do_not_fit_are_refused(autoencoder):
    with pytest.raises(ValueError, match="4 frames"):
        autoencoder.encode(torch.zeros(1, 3, 4, 16, 16))
