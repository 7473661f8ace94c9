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


def words(text):
    return torch.stack([torch.nn.functional.pad(t, (0, 0, 0, 512 - len(t))) for t in text])


@pytest.mark.parametrize(("channels", "out"), [(36, 16), (48, 16), (48, 48)])
def test_dit_with_more_channels(channels, out, loaded):
    oracle = diffusers_dit(in_channels=channels, out_channels=out)
    ours = loaded(DIT, oracle.state_dict())
    found = DIT.infer({n: tuple(t.shape) for n, t in ours.state_dict().items()})
    assert (found["family"], found["in_dim"], found["out_dim"]) == ("t2v", channels, out)
    x, t = torch.randn(2, out, 2, 4, 6), torch.tensor([0.9, 0.1], dtype=torch.float64)
    joined = torch.randn(2, channels - out, 2, 4, 6) if channels > out else None
    text = [torch.randn(7, 48), torch.randn(12, 48)]
    whole = x if joined is None else torch.cat([x, joined], 1)
    expected = oracle(whole, t * 1000, words(text)).sample
    assert error(ours(x, t, text, joined=joined), expected) < 1e-5


def test_dit_with_a_time_for_each_frame(loaded):
    oracle = diffusers_dit(in_channels=48, out_channels=48)
    ours = loaded(DIT, oracle.state_dict())
    x, text = torch.randn(2, 48, 3, 4, 6), [torch.randn(7, 48), torch.randn(12, 48)]
    t = torch.tensor([[0.0, 0.9, 0.9], [0.0, 0.25, 0.5]], dtype=torch.float64)
    tokens = (t * 1000).repeat_interleave(2 * 3, dim=1)  # each frame is 2x3 tokens
    expected = oracle(x, tokens, words(text)).sample
    assert error(ours(x, t, text), expected) < 1e-5
    assert error(ours(x, t[:, 2], text), expected) > 1e-2


def test_dit_with_a_reference_before_the_video(loaded):
    oracle = diffusers_dit(in_channels=48, out_channels=16, image_dim=1280, added_kv_proj_dim=256)
    convolution = fill(torch.nn.Conv2d(16, 256, 2, stride=2))
    state = {**oracle.state_dict(), "ref_conv.weight": convolution.weight}
    state["ref_conv.bias"] = convolution.bias
    ours = loaded(DIT, state)
    x, joined, t = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 32, 2, 4, 4), torch.tensor([0.5])
    reference, text, clip = (
        torch.randn(1, 16, 4, 4),
        [torch.randn(7, 48)],
        torch.zeros(1, 257, 1280),
    )

    class WithReference(torch.nn.Module):
        """The patch embedding of one frame more, whose first is the reference's tokens."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, latents):
            first = convolution(reference)[:, :, None]
            return torch.cat([first, self.inner(latents[:, :, 1:])], dim=2)

    oracle.patch_embedding = WithReference(oracle.patch_embedding)
    whole = torch.nn.functional.pad(torch.cat([x, joined], 1), (0, 0, 0, 0, 1, 0))
    expected = oracle(whole, t * 1000, words(text), clip).sample[:, :, 1:]
    found = ours(x, t, text, joined=joined, clip=clip, reference=reference)
    assert error(found, expected) < 1e-5
    # Zero features are not nothing: they pass the image embedding.
    assert error(ours(x, t, text, joined=joined, reference=reference), expected) > 1e-2


@pytest.mark.parametrize(("layers", "places"), [(4, [0, 2]), (3, [0, 2]), (2, [0, 1])])
def test_dit_with_control_blocks(layers, places, loaded):
    from diffusers import WanVACETransformer3DModel

    torch.manual_seed(0)
    oracle = WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=128,
        num_layers=layers,
        ffn_dim=192,
        text_dim=48,
        vace_layers=places,
        vace_in_channels=96,
    )
    fill(oracle).condition_embedder.timesteps_proj = ExactTime()
    state = oracle.state_dict()
    assert [d.name for d in keys.DIT if d.recognises(state)] == ["diffusers"]
    ours = loaded(DIT, state)
    assert DIT.infer({n: tuple(s.shape) for n, s in ours.state_dict().items()})["vace_layers"] == 2
    x, control = torch.randn(2, 16, 2, 4, 6), torch.randn(2, 96, 2, 4, 6)
    t, text = torch.tensor([0.9, 0.3]), [torch.randn(7, 48), torch.randn(12, 48)]
    strength = torch.full((len(places),), 0.7)
    expected = oracle(
        x,
        t * 1000,
        words(text),
        control_hidden_states=control,
        control_hidden_states_scale=strength,
    ).sample
    assert error(ours(x, t, text, control=control, control_scale=0.7), expected) < 1e-5


# How many tensors the published file has.
TENSORS = {
    "t2v-1.3B": 825,
    "t2v-14B": 1095,
    "t2i-14B": 1095,
    "i2v-14B": 1303,
    "flf2v-14B": 1304,
    "t2v-1.3B-FC": 983,
    "t2v-14B-FC": 1303,
    "i2v-1.3B-FC": 983,
    "i2v-14B-FC": 1303,
    "i2v-1.3B-FC-1.1": 985,
    "i2v-14B-FC-1.1": 1305,
    "t2v-A14B": 1095,
    "i2v-A14B": 1095,
    "ti2v-5B": 825,
    "vace-1.3B": 1264,
    "vace-14B": 1331,
}


def full_oracle(n):
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    sizes = {
        "num_attention_heads": n["dim"] // 128,
        "ffn_dim": n["ffn_dim"],
        "num_layers": n["num_layers"],
        "in_channels": n["in_dim"],
        "out_channels": n["out_dim"],
    }
    if n["vace_layers"]:
        step = n["num_layers"] // n["vace_layers"]
        places = list(range(0, n["num_layers"], step))
        return WanVACETransformer3DModel(vace_layers=places, vace_in_channels=96, **sizes)
    if n["family"] != "t2v":
        sizes |= {"image_dim": 1280, "added_kv_proj_dim": n["dim"]}
        sizes["pos_embed_seq_len"] = 514 if n["family"] == "flf2v" else None
    return WanTransformer3DModel(**sizes)


@pytest.mark.parametrize("variant", ARCHITECTURE.variants, ids=lambda v: v.name)
def test_full_sizes_have_the_released_names_and_shapes(variant):
    n = variant.numbers
    with torch.device("meta"):
        ours = DIT.build(**n).state_dict()
        oracle = full_oracle(n).state_dict()
    shapes = {name: tuple(t.shape) for name, t in ours.items()}
    assert DIT.infer(shapes) == n
    assert len(ours) == TENSORS[variant.name]
    if n["reference"]:  # a convolution of 2x2 latent cells, which diffusers' class lacks
        assert shapes.pop("ref_conv.weight") == (n["dim"], 16, 2, 2)
        assert shapes.pop("ref_conv.bias") == (n["dim"],)
    reading = dialect(keys.DIT, "diffusers").reading(oracle)
    assert {name: tuple(oracle[s.names[0]].shape) for name, s in reading.items()} == shapes
