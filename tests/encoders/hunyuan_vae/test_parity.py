"""HunyuanVideo's autoencoder against diffusers, float32, toy sizes, through the real key maps."""

import pytest
import torch

from musubi.encoders.hunyuan_vae.component import VAE
from musubi.encoders.hunyuan_vae.network import Pieces
from musubi.testing.twins import fill

pytestmark = pytest.mark.parity


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


def diffusers_vae():
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(0)
    return fill(AutoencoderKLHunyuanVideo(block_out_channels=(32, 64, 64, 96)))


@pytest.mark.parametrize(("prefix", "suffix"), [("", ".safetensors"), ("vae.", ".pt")])
def test_vae_files(prefix, suffix, loaded):
    oracle = diffusers_vae()
    state = {prefix + name: tensor for name, tensor in oracle.state_dict().items()}
    ours = loaded(VAE, state, suffix)
    assert ours.musubi_numbers == {"widths": (32, 64, 64, 96), "z_dim": 16}


@pytest.mark.parametrize("columns", [None, 8])
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_vae(frames, columns, loaded):
    oracle = diffusers_vae()
    ours = loaded(VAE, oracle.state_dict())
    x = torch.rand(2, 3, frames, 48, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = oracle.encode(x).latent_dist
    found = ours.encode(x, pieces=Pieces(columns=columns))
    assert found.shape == (2, 16, (frames - 1) // 4 + 1, 6, 4)
    assert error(found, expected.mode()) < 1e-5
    drawn = ours.encode(x, generator=torch.Generator().manual_seed(2))
    assert error(drawn, expected.sample(torch.Generator().manual_seed(2))) < 1e-5
    z = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    decoded = ours.decode(z, pieces=Pieces(columns=columns))
    expected = oracle.decode(z).sample
    assert (expected.abs() < 1).float().mean() > 0.5, "clamping must not hide differences"
    assert error(decoded, expected.clamp(-1, 1)) < 1e-5


def test_windows_in_time_are_blended_as_by_diffusers(loaded):
    oracle = diffusers_vae()
    ours = loaded(VAE, oracle.state_dict())
    pieces = Pieces(window=16)
    x = torch.rand(1, 3, 29, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    # diffusers adds a window whose frames the one before it covers; ours ends there
    oracle.tile_sample_min_num_frames, oracle.tile_sample_stride_num_frames = 16, 12
    found, expected = ours.encode(x, pieces=pieces), oracle.encode(x).latent_dist.mode()
    assert found.shape == expected.shape
    assert error(found[:, :, :7], expected[:, :, :7]) < 1e-5
    z = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    decoded, expected = ours.decode(z, pieces=pieces), oracle.decode(z).sample.clamp(-1, 1)
    assert decoded.shape == expected.shape == x.shape
    assert error(decoded[:, :, :25], expected[:, :, :25]) < 1e-5


@pytest.mark.parametrize("tile", [32, 64])
def test_tiles_come_near_the_whole(tile, loaded):
    ours = loaded(VAE, diffusers_vae().state_dict())
    x = torch.rand(1, 3, 5, 96, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = ours.encode(x)
    tiled = ours.encode(x, pieces=Pieces(tile=tile))
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert ours.decode(whole, pieces=Pieces(tile=tile)).shape == x.shape


def test_full_size_vae_has_the_released_names_and_shapes():
    from diffusers import AutoencoderKLHunyuanVideo

    with torch.device("meta"):
        ours = VAE.build(widths=(128, 256, 512, 512), z_dim=16).state_dict()
        oracle = AutoencoderKLHunyuanVideo().state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in oracle.items()}
