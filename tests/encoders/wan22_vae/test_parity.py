"""Wan2.2's autoencoder against diffusers', float32, toy sizes, both ways, through the key maps."""

import pytest
import torch

from musubi.encoders.wan22_vae import keys, network
from musubi.encoders.wan22_vae.component import WAN22_VAE
from musubi.encoders.wan_vae.component import VAE
from musubi.errors import CheckpointError
from musubi.testing.twins import build_twin, fill

pytestmark = pytest.mark.parity


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


def oracle(**changes):
    from diffusers import AutoencoderKLWan

    config = {
        "base_dim": 8, "decoder_base_dim": 16, "z_dim": 48, "in_channels": 12, "out_channels": 12,
        "patch_size": 2, "is_residual": True, "scale_factor_spatial": 16,
        "temperal_downsample": [False, True, True],
        "latents_mean": list(network.MEAN), "latents_std": list(network.STD),
    }  # fmt: skip
    return AutoencoderKLWan(**{**config, **changes})


@pytest.mark.parametrize("frames", [1, 5, 9])
@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_both_ways(layout, frames, loaded):
    theirs = fill(oracle())
    state = theirs.state_dict()
    if layout == "official":
        state = official(state)
    assert [d.name for d in keys.WAN22_VAE if d.recognises(state)] == [layout]
    ours = loaded(WAN22_VAE, state, ".pth" if layout == "official" else ".safetensors")
    mean = torch.tensor(network.MEAN).view(1, 48, 1, 1, 1)
    std = torch.tensor(network.STD).view(1, 48, 1, 1, 1)
    x = torch.rand(2, 3, frames, 48, 32) * 2 - 1
    found = ours.encode(x)
    assert found.shape == (2, 48, (frames - 1) // 4 + 1, 3, 2)
    assert error(found, (theirs.encode(x).latent_dist.mode() - mean) / std) < 1e-5
    z = torch.randn(found.shape)
    expected = theirs.decode(z * std + mean).sample
    assert (expected.abs() < 1).float().mean() > 0.5, "clamping must not hide differences"
    assert error(ours.decode(z), expected) < 1e-5


RESIDUAL = {
    "norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}  # fmt: skip


def official(state):
    """The official file's names, written out: the key map must not be its own witness."""
    made = {}
    for name, tensor in state.items():
        side, *rest = name.split(".")
        if side in ("quant_conv", "post_quant_conv"):
            new = f"{'conv1' if side == 'quant_conv' else 'conv2'}.{rest[0]}"
        elif rest[0] in ("conv_in", "norm_out", "conv_out"):
            place = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}[rest[0]]
            new = ".".join([side, place, *rest[1:]])
        elif rest[0] == "mid_block":
            index = {"resnets0": "0", "attentions0": "1", "resnets1": "2"}[rest[1] + rest[2]]
            new = ".".join([side, "middle", index, RESIDUAL.get(rest[3], rest[3]), *rest[4:]])
        else:
            group = "downsamples" if rest[0] == "down_blocks" else "upsamples"
            head = f"{side}.{group}.{rest[1]}.{group}"
            if rest[2] == "resnets":
                new = ".".join([head, rest[3], RESIDUAL[rest[4]], *rest[5:]])
            else:
                new = ".".join([head, "2" if side == "encoder" else "3", *rest[3:]])
        made[new] = tensor
    return made


def test_the_full_size_has_the_released_names_and_shapes():
    with torch.device("meta"):
        ours = WAN22_VAE.build(**WAN22_VAE.full).state_dict()
        theirs = oracle(base_dim=160, decoder_base_dim=256).state_dict()
    reading = keys.WAN22_VAE[1].reading(theirs)
    shapes = {name: tuple(t.shape) for name, t in ours.items()}
    assert {name: tuple(theirs[s.names[0]].shape) for name, s in reading.items()} == shapes
    assert WAN22_VAE.infer(shapes) == WAN22_VAE.full
    assert sorted(official(theirs)) == sorted(ours)
    assert len(ours) == 196


def test_the_past_never_sees_the_future_and_tiles_cover_the_picture():
    vae = build_twin(WAN22_VAE)
    x = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    other = x.clone()
    other[:, :, 5:] = 0
    z = vae.encode(x)
    assert torch.equal(z[:, :, :2], vae.encode(other)[:, :, :2])
    assert torch.equal(z, vae.encode(x, cache_on_host=True))
    wide = torch.rand(1, 3, 5, 64, 160) * 2 - 1
    assert vae.encode(wide, tile=64).shape == vae.encode(wide).shape
    assert vae.decode(vae.encode(wide), tile=64).shape == wide.shape
    with pytest.raises(ValueError, match="multiples of 16"):
        vae.encode(torch.zeros(1, 3, 1, 24, 32))


def test_the_older_autoencoder_is_refused():
    shapes = {n: tuple(t.shape) for n, t in VAE.build(**VAE.tiny).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"not Wan2.2's VAE"):
        network.infer(shapes)
