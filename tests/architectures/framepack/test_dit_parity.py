"""FramePack's denoiser against diffusers, float32, toy sizes, through the real key maps."""

import pytest
import torch

from musubi.architectures.framepack import keys
from musubi.architectures.framepack.component import DIT
from musubi.architectures.framepack.context import real_tokens
from musubi.testing.twins import fill

pytestmark = pytest.mark.parity


def oracle(**more):
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    torch.manual_seed(0)
    small = {
        "num_attention_heads": 2,
        "attention_head_dim": 128,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 2,
        "text_embed_dim": 48,
        "pooled_projection_dim": 24,
        "image_proj_dim": 20,
        "has_image_proj": True,
        "has_clean_x_embedder": True,
    }
    return fill(HunyuanVideoFramepackTransformer3DModel(**{**small, **more}))


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def example(size=(3, 6, 4), lengths=(9, 9)):
    n, (f, h, w) = len(lengths), size
    mask = torch.zeros(n, 12, dtype=torch.bool)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = True
    return {
        "x": randn(n, 16, f, h, w, seed=1),
        "timestep": torch.linspace(954.5, 250.0, n),
        "text": randn(n, 12, 48, seed=2),
        "mask": mask,
        "pooled": randn(n, 24, seed=3),
        "image": randn(n, 7, 20, seed=4),
        "indices": torch.arange(4, 4 + f).expand(n, -1),
        "clean": (randn(n, 16, 2, h, w, seed=5), torch.tensor([[0, 4 + f]]).expand(n, -1)),
        "clean_2x": (
            randn(n, 16, 2, h, w, seed=6),
            torch.arange(5 + f, 7 + f).expand(n, -1),
        ),
        "clean_4x": (
            randn(n, 16, 16, h, w, seed=7),
            torch.arange(7 + f, 23 + f).expand(n, -1),
        ),
        "guidance": torch.linspace(10000.0, 1000.0, n),
    }


def theirs_of(model, given):
    # One row of indices: diffusers makes one table of all that it is given.
    def row(indices):
        return indices[0]

    return model(
        given["x"],
        given["timestep"],
        given["text"],
        given["mask"].long(),
        given["pooled"],
        given["image"],
        row(given["indices"]),
        guidance=given["guidance"],
        latents_clean=given["clean"][0],
        indices_latents_clean=row(given["clean"][1]),
        latents_history_2x=given["clean_2x"][0],
        indices_latents_history_2x=row(given["clean_2x"][1]),
        latents_history_4x=given["clean_4x"][0],
        indices_latents_history_4x=row(given["clean_4x"][1]),
    ).sample


def told(given):
    """As the runtime tells it."""
    return {**{k: v for k, v in given.items() if k != "mask"}, "real": real_tokens(given["mask"])}


def one(given, i):
    """Item `i` as a batch of its own."""
    return {
        k: tuple(p[i : i + 1] for p in v) if isinstance(v, tuple) else v[i : i + 1]
        for k, v in given.items()
    }


@pytest.fixture(scope="module")
def theirs():
    return oracle()


# Sides that do not divide by the large patches are padded: (4, 10) is 2 x 5 patches of 2.
@pytest.mark.parametrize("size", [(9, 16, 8), (3, 6, 4), (1, 4, 10)])
@pytest.mark.parametrize("lengths", [(9, 9), (5, 12)])
def test_velocity(size, lengths, theirs, loaded):
    ours = loaded(DIT, theirs.state_dict())
    given = example(size, lengths)
    assert error(ours(**told(given)), theirs_of(theirs, given)) < 1e-5
    alone = one(given, 0)
    assert error(ours(**told(alone)), theirs_of(theirs, alone)) < 1e-5


def test_a_mask_with_holes(theirs, loaded):
    ours = loaded(DIT, theirs.state_dict())
    given = example()
    given["mask"][0, 0] = given["mask"][0, 4] = given["mask"][1, 2] = False
    assert error(ours(**told(given)), theirs_of(theirs, given)) < 1e-5


def test_items_have_indices_of_their_own(theirs, loaded):
    ours = loaded(DIT, theirs.state_dict())
    given = example()
    given["indices"] = torch.stack([given["indices"][0], given["indices"][0] + 9])
    expected = torch.cat([theirs_of(theirs, one(given, i)) for i in range(2)])
    assert error(ours(**told(given)), expected) < 1e-5


def test_absent_latents_are_zeros_and_absent_history_is_no_token(theirs, loaded):
    ours = loaded(DIT, theirs.state_dict())
    given = example()
    zeros = dict(given, clean_4x=(torch.zeros(2, 16, 16, 6, 4), given["clean_4x"][1]))
    found = ours(**dict(told(given), clean_4x=(None, given["clean_4x"][1])))
    assert torch.equal(found, ours(**told(zeros)))
    assert error(ours(**dict(told(given), clean_4x=None)), found) > 1e-3


def test_rope_scale_is_of_height_and_width(theirs, loaded):
    ours = loaded(DIT, theirs.state_dict())
    given = example()
    get = theirs.rope.forward

    def scaled(frame_indices, height, width, device):
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        axes = (
            frame_indices.float(),
            torch.arange(height // 2).float() * 0.5,
            torch.arange(width // 2).float() * 0.5,
        )
        grid = torch.meshgrid(*axes, indexing="ij")
        parts = [
            get_1d_rotary_pos_embed(size, g.reshape(-1), 256.0, use_real=True)
            for size, g in zip((16, 56, 56), grid, strict=True)
        ]
        return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)

    theirs.rope.forward = scaled
    try:
        expected = theirs_of(theirs, given)
    finally:
        theirs.rope.forward = get
    assert error(ours(**told(given), rope_scale=0.5), expected) < 1e-5
    assert error(ours(**told(given)), expected) > 1e-3


def test_layouts(theirs, loaded):
    given = example()
    expected = theirs_of(theirs, given)
    for layout in keys.DIT:
        state = {layout.prefix + name: tensor for name, tensor in theirs.state_dict().items()}
        ours = loaded(DIT, state)
        assert error(ours(**told(given)), expected) < 1e-5
        numbers = dict(ours.musubi_numbers)
    assert numbers == {
        "hidden": 256,
        "double_depth": 2,
        "single_depth": 2,
        "refiner_depth": 2,
        "channels": 16,
        "text_dim": 48,
        "pooled_dim": 24,
        "image_dim": 20,
        "guidance": True,
    }
