"""CLIP's image tower against transformers', float32, toy sizes, through the real key maps."""

import pytest
import torch

from musubi.encoders.clip_vision import keys, network
from musubi.encoders.clip_vision.component import CLIP_VISION
from musubi.errors import CheckpointError
from musubi.testing.twins import fill

pytestmark = pytest.mark.parity


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


def oracle(**changes):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {
        "hidden_size": 160, "intermediate_size": 192, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
        "attn_implementation": "eager",
    }  # fmt: skip
    return fill(CLIPVisionModel(CLIPVisionConfig(**{**sizes, **changes})))


def bare(state):
    """Without the module's own prefix, which transformers 4 has and 5 has not."""
    return {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}


def official(state):
    """The names and shapes of the official file, written out; beside them what is not read."""
    names = {
        "embeddings.patch_embedding.weight": "visual.patch_embedding.weight",
        "pre_layrnorm.weight": "visual.pre_norm.weight",
        "pre_layrnorm.bias": "visual.pre_norm.bias",
        "post_layernorm.weight": "visual.post_norm.weight",
        "post_layernorm.bias": "visual.post_norm.bias",
    }
    inner = {
        "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj",
        "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2",
    }  # fmt: skip
    made = {
        "visual.cls_embedding": state["embeddings.class_embedding"].view(1, 1, -1),
        "visual.pos_embedding": state["embeddings.position_embedding.weight"][None],
        "visual.head": torch.randn(160, 64),
        "textual.token_embedding.weight": torch.randn(10, 4),
        "log_scale": torch.tensor(2.0),
    }
    for name, tensor in state.items():
        if name in names:
            made[names[name]] = tensor
        elif name.startswith("encoder.layers."):
            _, _, n, rest = name.split(".", 3)
            layer, kind = rest.rsplit(".", 1)
            if layer in inner:
                made[f"visual.transformer.{n}.{inner[layer]}.{kind}"] = tensor
            elif layer == "self_attn.q_proj":
                parts = [state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
                made[f"visual.transformer.{n}.attn.to_qkv.{kind}"] = torch.cat(parts)
    return made


@pytest.mark.parametrize("layout", ["official", "transformers", "headless"])
def test_features(layout, loaded):
    theirs = oracle()
    state = bare(theirs.state_dict())
    if layout == "official":
        state = official(state)
    elif layout == "transformers":
        state = {f"vision_model.{name}": tensor for name, tensor in state.items()}
        state["vision_model.embeddings.position_ids"] = torch.arange(257)[None]
        state["visual_projection.weight"] = torch.randn(64, 160)
    assert [d.name for d in keys.CLIP_VISION if d.recognises(state)] == [layout]
    ours = loaded(CLIP_VISION, state, ".pth" if layout == "official" else ".safetensors")
    assert len(ours.transformer) == 2, "the last block is left in the file"
    pictures = [torch.rand(3, 50, 80) * 2 - 1, torch.rand(3, 300, 260) * 2 - 1]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    for picture, found in zip(pictures, network.encode(ours, pictures), strict=True):
        small = torch.nn.functional.interpolate(picture[None], (224, 224), mode="bicubic")
        pixels = (small / 2 + 0.5 - mean) / std
        hidden = theirs(pixel_values=pixels, output_hidden_states=True).hidden_states
        assert found.shape == (257, 160)
        assert error(found, hidden[-2][0]) < 1e-5
        assert error(found, hidden[-1][0]) > 1e-3


def test_the_picture_is_resized_whole_without_smoothing():
    picture = torch.rand(3, 448, 224) * 2 - 1
    found = network.prepared(picture, 224)
    smoothed = torch.nn.functional.interpolate(
        picture[None], (224, 224), mode="bicubic", antialias=True
    )
    assert found.shape == (1, 3, 224, 224)
    std = torch.tensor(network.STD).view(3, 1, 1)
    mean = torch.tensor(network.MEAN).view(3, 1, 1)
    assert error(found[0], (smoothed[0] / 2 + 0.5 - mean) / std) > 0.05


def test_the_full_size_has_the_released_names_and_shapes():
    with torch.device("meta"):
        ours = CLIP_VISION.build(**CLIP_VISION.full).state_dict()
        theirs = oracle(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16
        )
    state = {f"vision_model.{n}": t for n, t in bare(theirs.state_dict()).items()}
    layout = next(d for d in keys.CLIP_VISION if d.name == "transformers")
    reading = layout.reading(state)
    assert sorted(reading) == sorted(ours)
    for name, source in reading.items():
        if source.operation == "copy":
            assert state[source.names[0]].shape == ours[name].shape
    written = {"visual.cls_embedding", "visual.transformer.31.attn.to_qkv.bias"}
    assert written <= set(keys.CLIP_VISION[0].writing(ours))
    shapes = {name: tuple(t.shape) for name, t in ours.items()}
    assert CLIP_VISION.infer(shapes) == CLIP_VISION.full


def test_another_tower_is_refused():
    with torch.device("meta"):
        shapes = {
            n: tuple(t.shape) for n, t in CLIP_VISION.build(**CLIP_VISION.tiny).state_dict().items()
        }
    with pytest.raises(CheckpointError, match="1024 wide"):
        network.infer({**shapes, "patch_embedding.weight": (1024, 3, 14, 14)})
    del shapes["pre_norm.weight"]
    with pytest.raises(CheckpointError, match=r"no tensor 'pre_norm.weight'"):
        network.infer(shapes)
