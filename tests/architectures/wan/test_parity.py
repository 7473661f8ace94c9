"""Wan's denoiser against diffusers, float32, toy sizes, through the real key maps."""

import pytest
import torch

from musubi.architectures.wan import ARCHITECTURE, keys
from musubi.architectures.wan.dit import sinusoid
from musubi.testing.twins import fill

pytestmark = pytest.mark.parity

DIT = ARCHITECTURE.dit


def dialect(dialects, name):
    return next(d for d in dialects if d.name == name)


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


class ExactTime(torch.nn.Module):
    """Stands in for diffusers' `Timesteps`, whose sinusoid is float32; the official is float64."""

    def forward(self, timestep):
        return sinusoid(timestep / 1000, 256)


def diffusers_dit(**more):
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 128, "num_layers": 2, "ffn_dim": 192}
    oracle = fill(WanTransformer3DModel(text_dim=48, **sizes, **more))
    oracle.condition_embedder.timesteps_proj = ExactTime()
    return oracle


@pytest.mark.parametrize("size", [(1, 4, 6), (3, 6, 4), (2, 2, 8)])
def test_dit(size, loaded):
    oracle = diffusers_dit()
    ours = loaded(DIT, oracle.state_dict())
    x = torch.randn(2, 16, *size)
    t = torch.tensor([0.999, 0.25], dtype=torch.float64)
    text = [torch.randn(7, 48), torch.randn(12, 48)]
    padded = torch.stack([torch.nn.functional.pad(one, (0, 0, 0, 512 - len(one))) for one in text])
    expected = oracle(x, t * 1000, padded).sample
    assert error(ours(x, t, text), expected) < 1e-5
    assert error(ours(x, t.float(), padded), expected) < 1e-5


@pytest.mark.parametrize("family", ["i2v", "flf2v"])
def test_dit_with_images(family, loaded):
    images = 2 if family == "flf2v" else 1
    oracle = diffusers_dit(
        in_channels=36,
        image_dim=1280,
        added_kv_proj_dim=256,
        pos_embed_seq_len=514 if images == 2 else None,
    )
    ours = loaded(DIT, oracle.state_dict())
    assert DIT.infer({n: tuple(t.shape) for n, t in ours.state_dict().items()})["family"] == family
    x, joined, text = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 20, 2, 4, 4), torch.randn(512, 48)
    clip = torch.randn(1, 257 * images, 1280)
    t = torch.tensor([0.5])
    expected = oracle(
        torch.cat([x, joined], 1), t * 1000, text[None], clip.view(images, 257, 1280)
    ).sample
    assert error(ours(x, t, [text], joined=joined, clip=clip), expected) < 1e-5


@pytest.mark.parametrize("variant", ARCHITECTURE.variants, ids=lambda v: v.name)
def test_full_sizes_have_the_released_names_and_shapes(variant):
    from diffusers import WanTransformer3DModel

    n = variant.numbers
    with torch.device("meta"):
        ours = DIT.build(**n).state_dict()
        oracle = WanTransformer3DModel(
            num_attention_heads=n["dim"] // 128,
            ffn_dim=n["ffn_dim"],
            num_layers=n["num_layers"],
        ).state_dict()
    reading = dialect(keys.DIT, "diffusers").reading(oracle)
    assert {name: oracle[s.names[0]].shape for name, s in reading.items()} == {
        name: tensor.shape for name, tensor in ours.items()
    }
    assert len(ours) == {"t2v-1.3B": 825, "t2v-14B": 1095, "t2i-14B": 1095}[variant.name]
