"""SigLIP's vision tower against transformers, float32, toy size, through the real key maps."""

import numpy as np
import pytest
import torch
from PIL import Image

from musubi.encoders.siglip.component import siglip
from musubi.encoders.siglip.network import encode, pixels
from musubi.errors import CheckpointError
from musubi.testing.twins import fill

pytestmark = pytest.mark.parity

COMPONENT = siglip()


def tower(**more):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    small = {
        "hidden_size": 144,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 384,
        "patch_size": 14,
    }
    return fill(SiglipVisionModel(SiglipVisionConfig(**{**small, **more})).float())


def released(state):
    """As the published files name them, whichever transformers wrote the module."""
    return {f"vision_model.{name.removeprefix('vision_model.')}": t for name, t in state.items()}


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_last_hidden_state(loaded):
    theirs = tower()
    picture = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    import transformers

    # transformers 5 has a second one, which resizes by torch and is 6e-3 off.
    kind = getattr(transformers, "SiglipImageProcessorPil", transformers.SiglipImageProcessor)
    processor = kind(size={"height": 384, "width": 384}, resample=3)
    prepared = processor(images=Image.fromarray(picture), return_tensors="pt").pixel_values
    assert (pixels(picture) - prepared).abs().max() < 1e-6
    expected = theirs(prepared).last_hidden_state[0]
    state = released(theirs.state_dict())
    plain = {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}
    for names in (state, plain):
        ours = loaded(COMPONENT, names)
        assert ours.musubi_numbers["dim"] == 144
        found = encode(ours, picture)
        assert found.shape == (729, 144)
        assert error(found, expected) < 1e-5


def test_another_size_is_refused(loaded):
    theirs = tower(image_size=224)
    with pytest.raises(CheckpointError, match="256 patches of 14 pixels"):
        loaded(COMPONENT, released(theirs.state_dict()))
