"""HunyuanVideo's denoiser against diffusers, float32, toy sizes, through the real key maps."""

import pytest
import torch

from musubi.architectures.hunyuan_video import ARCHITECTURE, keys, sizes
from musubi.testing.twins import fill

pytestmark = pytest.mark.parity

DIT = ARCHITECTURE.dit


def dialect(name):
    return next(d for d in keys.DIT if d.name == name)


def oracle(**more):
    from diffusers import HunyuanVideoTransformer3DModel

    torch.manual_seed(0)
    small = {
        "num_attention_heads": 2,
        "attention_head_dim": 128,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 2,
        "text_embed_dim": 48,
        "pooled_projection_dim": 24,
    }
    return fill(HunyuanVideoTransformer3DModel(**{**small, **more}))


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


def example(size=(3, 6, 4), channels=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, *size, generator=generator)
    t = torch.tensor([0.9545, 0.25])
    text = torch.randn(2, 9, 48, generator=generator)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, 5:] = 0
    pooled = torch.randn(2, 24, generator=generator)
    return x, t, text, mask, pooled, torch.tensor([6000.0, 1000.0])


@pytest.mark.parametrize("size", [(1, 4, 6), (3, 6, 4), (2, 2, 8)])
def test_text_to_video(size, loaded):
    theirs = oracle()
    ours = loaded(DIT, theirs.state_dict())
    x, t, text, mask, pooled, guidance = example(size)
    expected = theirs(x, t * 1000, text, mask, pooled, guidance).sample
    found = ours(x, t, text, pooled, lengths=[5, 9], guidance=guidance)
    assert error(found, expected) < 1e-5
    as_list = ours(x, t, [text[0, :5], text[1]], pooled, guidance=guidance)
    assert error(as_list, expected) < 1e-5


def test_image_to_video_of_32_channels(loaded):
    theirs = oracle(in_channels=32)
    ours = loaded(DIT, theirs.state_dict())
    assert ours.musubi_numbers["in_channels"] == 32
    x, t, text, mask, pooled, guidance = example(channels=32)
    expected = theirs(x, t * 1000, text, mask, pooled, guidance).sample
    found = ours(x[:, :16], t, text, pooled, lengths=[5, 9], guidance=guidance, joined=x[:, 16:])
    assert error(found, expected) < 1e-5


def test_without_guidance(loaded):
    theirs = oracle(guidance_embeds=False)
    ours = loaded(DIT, theirs.state_dict())
    assert ours.musubi_numbers["guidance"] is False
    x, t, text, mask, pooled, guidance = example()
    expected = theirs(x, t * 1000, text, mask, pooled).sample
    for given in (None, guidance):
        assert error(ours(x, t, text, pooled, lengths=[5, 9], guidance=given), expected) < 1e-5


def test_full_size_has_the_released_names_and_shapes():
    from diffusers import HunyuanVideoTransformer3DModel

    with torch.device("meta"):
        ours = DIT.build(**sizes.FULL).state_dict()
        theirs = HunyuanVideoTransformer3DModel().state_dict()
    assert len(ours) == 856
    reading = dialect("diffusers").reading(theirs)
    assert {
        name: (
            sum(theirs[part].shape[0] for part in source.names),
            *theirs[source.names[0]].shape[1:],
        )
        for name, source in reading.items()
    } == {name: tuple(tensor.shape) for name, tensor in ours.items()}
    assert DIT.infer({name: tuple(t.shape) for name, t in ours.items()}) == sizes.FULL
