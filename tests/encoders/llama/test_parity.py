"""LLaVA-Llama3 against transformers, float32, toy sizes, through the real key maps."""

import pytest
import torch

from musubi.encoders.llama import network
from musubi.encoders.llama.component import LLM
from musubi.testing import twins
from musubi.testing.twins import fill
from musubi.weights.tokenizer import load_tokenizer

pytestmark = pytest.mark.parity

CAPTIONS = ["a cat", "a dog runs over the grass, " * 20]


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return fill(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=320,
                hidden_size=48,
                intermediate_size=64,
                num_hidden_layers=4,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=128,
                rope_theta=500000.0,
                rms_norm_eps=1e-5,
                max_position_embeddings=8192,
                tie_word_embeddings=False,
            )
        )
    )


@pytest.mark.parametrize("layout", ["transformers", "headless", "llava", "comfyui"])
def test_llm(layout, loaded, tmp_path):
    oracle = llama()
    state = oracle.state_dict()
    if layout == "headless":
        state = oracle.model.state_dict()
    elif layout == "llava":
        state = {f"language_model.{name}": tensor for name, tensor in state.items()}
        state["vision_tower.patch.weight"] = torch.zeros(3)
    elif layout == "comfyui":
        state["tokenizer"] = torch.zeros(10, dtype=torch.uint8)
    ours = loaded(LLM, state)
    tokenizer = load_tokenizer(LLM, twins.write_tokenizer(tmp_path / "tokenizer"), None)
    start = network.template_length(tokenizer)
    tokens = tokenizer(
        [network.BEFORE + caption + network.AFTER for caption in CAPTIONS],
        padding="max_length",
        max_length=start + 256,
        truncation=True,
        return_tensors="pt",
    )
    expected = oracle.model(**tokens, output_hidden_states=True).hidden_states[-3][:, start:]
    for i, (hidden, mask) in enumerate(network.encode(ours, tokenizer, CAPTIONS)):
        assert hidden.shape == (256, 48) and mask.shape == (256,) and mask.dtype == torch.int64
        assert torch.equal(mask, tokens["attention_mask"][i, start:])
        assert error(hidden, expected[i]) < 1e-5
    assert mask.all()  # the second caption fills it


def test_layers_that_do_not_speak_are_not_loaded(loaded):
    oracle = llama()
    state = {name: tensor.clone() for name, tensor in oracle.state_dict().items()}
    for name, tensor in state.items():  # NaN is refused in what is read
        if name.startswith(("model.layers.2.", "model.layers.3.", "model.norm.")):
            tensor.fill_(float("nan"))
    ours = loaded(LLM, state)
    assert ours.musubi_numbers["num_layers"] == 4
    assert not [n for n in ours.state_dict() if n.startswith(("model.layers.2.", "model.norm."))]
    ids = torch.arange(12)[None] % 7
    mask = torch.ones_like(ids)
    expected = oracle.model(ids, mask, output_hidden_states=True).hidden_states[-3]
    assert error(ours(ids, mask), expected) < 1e-5


def test_the_template_is_counted_by_the_tokenizer(tmp_path):
    tokenizer = load_tokenizer(LLM, twins.write_tokenizer(tmp_path / "tokenizer"), None)
    # the toy has one token for each byte, and closes each text with one
    assert network.template_length(tokenizer) == len(network.BEFORE)
