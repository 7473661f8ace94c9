"""The autoencoder as ComfyUI repackages it: latent diffusion's names, attention as convolutions."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi.encoders.hunyuan_vae.component import VAE
from musubi.errors import CheckpointError
from musubi.testing import twins
from musubi.weights.load import inspect, load

CPU = torch.device("cpu")
# From our names: patterns in order, as the people who renamed the file describe it.
NAMES = (
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{3 - int(m[1])}.block."),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)


def theirs(name):
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def repackaged(state):
    return {
        theirs(name): tensor[..., None, None, None]
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", theirs(name))
        else tensor
        for name, tensor in state.items()
    }


def widths(wide):
    return {"widths": wide, "z_dim": 16}


@pytest.fixture
def module():
    torch.manual_seed(0)
    return VAE.build(**widths((32, 64, 64, 96))).eval().requires_grad_(False)


def test_a_file_in_that_layout_is_the_same_network(module, tmp_path):
    path = tmp_path / "hunyuan_video_vae.safetensors"
    save_file({n: t.contiguous() for n, t in repackaged(module.state_dict()).items()}, path)
    assert inspect(VAE, path).dialect.name == "comfyui"
    found = load(VAE, path, device=CPU, dtype=torch.float32)
    assert found.musubi_numbers == widths((32, 64, 64, 96))
    ours = module.state_dict()
    assert {n: t.shape for n, t in found.state_dict().items()} == {
        n: t.shape for n, t in ours.items()
    }
    assert all(torch.equal(tensor, ours[name]) for name, tensor in found.state_dict().items())


def test_the_full_size_has_their_names_and_is_written_back_exactly():
    with torch.device("meta"):
        state = VAE.build(**widths((128, 256, 512, 512))).state_dict()
    dialect = next(d for d in VAE.dialects if d.name == "comfyui")
    expected = repackaged(state)
    assert sorted(dialect.writing(state)) == sorted(expected)
    assert len(expected) == len(state)
    for name in (
        "encoder.down.1.block.0.nin_shortcut.conv.weight",
        "encoder.down.2.downsample.conv.conv.weight",
        "decoder.up.3.block.2.norm2.bias",
        "decoder.up.1.upsample.conv.conv.bias",
        "decoder.mid.block_2.conv1.conv.weight",
        "encoder.mid.attn_1.norm.weight",
        "decoder.norm_out.bias",
        "post_quant_conv.weight",
    ):
        assert name in expected
    assert expected["decoder.up.0.block.0.nin_shortcut.conv.weight"].shape == (128, 256, 1, 1, 1)
    assert expected["decoder.mid.attn_1.proj_out.weight"].shape == (512, 512, 1, 1, 1)
    reading = dialect.reading(expected)
    assert sorted(reading) == sorted(state)


def test_a_twin_goes_there_and_back(tmp_path):
    path = twins.write_twin(VAE, tmp_path, dialect="comfyui")
    plain = twins.write_twin(VAE, tmp_path / "official")
    stored = load_file(path)
    assert stored["encoder.mid.attn_1.q.weight"].ndim == 5
    one, other = (load(VAE, p, device=CPU).state_dict() for p in (path, plain))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_attention_that_is_no_matrix_is_refused(module, tmp_path):
    state = {n: t.contiguous() for n, t in repackaged(module.state_dict()).items()}
    state["decoder.mid.attn_1.k.weight"] = torch.zeros(96, 96, 1, 3, 3)
    save_file(state, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"attn_1\.k\.weight.*does not end in 3 times 1"):
        load(VAE, tmp_path / "vae.safetensors", device=CPU)
