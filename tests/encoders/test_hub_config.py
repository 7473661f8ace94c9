"""Hub folders of other sizes: what config.json says is taken, against transformers in float32."""

import json

import numpy as np
import pytest
import torch

from musubi.encoders.clip_text.component import CLIP
from musubi.encoders.clip_vision import network as clip_vision
from musubi.encoders.clip_vision.component import CLIP_VISION
from musubi.encoders.llama.component import LLM
from musubi.encoders.siglip import network as siglip_network
from musubi.encoders.siglip.component import siglip
from musubi.encoders.umt5.component import T5
from musubi.errors import CheckpointError
from musubi.testing.twins import fill
from musubi.weights.load import load

pytestmark = pytest.mark.parity
IDS = torch.tensor([[3, 9, 27, 81, 5, 2], [7, 1, 200, 4, 6, 2]])
MASK = torch.ones_like(IDS)


def saved(model, folder):
    fill(model)
    model.save_pretrained(folder)
    return model.eval()


def ours(component, folder):
    return load(component, folder, device="cpu", dtype=torch.float32)


def close(found, expected):
    assert found.shape == expected.shape
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


def llama(folder, *, whole=True, **more):
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

    sizes = {"vocab_size": 320, "hidden_size": 128, "intermediate_size": 96}
    sizes |= {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
    kind = LlamaForCausalLM if whole else LlamaModel
    return saved(kind(LlamaConfig(**{**sizes, **more})), folder)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-3},
        {"head_dim": 32, "attention_bias": True},
        {"hidden_size": 256, "num_attention_heads": 2},  # heads of 128, but another theta
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_llama(tmp_path, more, whole):
    oracle = llama(tmp_path, whole=whole, **more)
    inner = oracle.model if whole else oracle
    states = inner(IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    close(ours(LLM, tmp_path)(IDS, MASK), states[-3])


def test_a_file_in_its_folder_counts_too(tmp_path):
    llama(tmp_path)
    assert ours(LLM, tmp_path / "model.safetensors").musubi_numbers["head_dim"] == 64


def test_without_a_config_another_head_size_is_refused(tmp_path):
    llama(tmp_path, num_attention_heads=4, num_key_value_heads=1)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json of a Llama"):
        ours(LLM, tmp_path)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("whole", [True, False])
def test_clip_text(tmp_path, activation, whole):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "layer_norm_eps": 1e-3}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": activation}
    sizes |= {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    if whole:
        vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
        oracle = saved(CLIPModel(CLIPConfig(text_config=sizes, vision_config=vision)), tmp_path)
        text = oracle.text_model
    else:
        text = saved(CLIPTextModel(CLIPTextConfig(**sizes)), tmp_path)
    expected = text(input_ids=IDS).last_hidden_state[:, -1]
    close(ours(CLIP, tmp_path)(IDS, torch.tensor([5, 5])), expected)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_vision(tmp_path, activation):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "image_size": 56, "patch_size": 14}
    oracle = saved(CLIPVisionModel(CLIPVisionConfig(**sizes, hidden_act=activation)), tmp_path)
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    expected = oracle(pixels, output_hidden_states=True).hidden_states[-2]
    tower = ours(CLIP_VISION, tmp_path)
    close(tower(pixels), expected)
    picture = torch.rand(3, 40, 60) * 2 - 1
    assert clip_vision.encode(tower, [picture]).shape == (1, 17, 64)


def test_siglip(tmp_path):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 3, "image_size": 56, "patch_size": 14, "layer_norm_eps": 1e-3}
    oracle = saved(SiglipVisionModel(SiglipVisionConfig(**sizes)), tmp_path)
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    expected = oracle(siglip_network.pixels(picture, 56)).last_hidden_state[0]
    close(siglip_network.encode(ours(siglip(), tmp_path), picture), expected)


def test_umt5(tmp_path):
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=320,
        d_model=48,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=4,
        layer_norm_epsilon=1e-3,
        feed_forward_proj="gated-silu",
    )
    oracle = saved(UMT5EncoderModel(config), tmp_path)
    expected = oracle(IDS, attention_mask=MASK).last_hidden_state
    close(ours(T5, tmp_path)(IDS, MASK), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 64}, "hidden_size = 64, and its tensors show 128"),
        ({"num_hidden_layers": 9}, "num_hidden_layers = 9, and its tensors show 4"),
        ({"num_attention_heads": "x"}, "config.json"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, change, said):
    llama(tmp_path)
    path = tmp_path / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k != "head_dim"}
    path.write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=said):
        ours(LLM, tmp_path)


def test_a_damaged_config_is_named(tmp_path):
    llama(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json beside it cannot be read"):
        ours(LLM, tmp_path)


def test_another_models_config_beside_a_file_is_passed_over(tmp_path):
    llama(tmp_path, hidden_size=256, rope_theta=500000.0, rms_norm_eps=1e-5)
    (tmp_path / "config.json").write_text('{"model_type": "umt5", "d_model": 5}')
    assert ours(LLM, tmp_path / "model.safetensors").musubi_numbers["num_heads"] == 2
