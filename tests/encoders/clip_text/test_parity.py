"""CLIP's text tower against transformers, float32, toy sizes, through the real key maps."""

import pytest
import torch

from musubi.encoders.clip_text import network
from musubi.encoders.clip_text.component import CLIP
from musubi.testing import twins
from musubi.testing.twins import fill
from musubi.weights.tokenizer import load_tokenizer

pytestmark = pytest.mark.parity

CAPTIONS = ["a cat", "a dog runs over the grass, " * 20]


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("layout", ["text_model", "bare", "whole"])
def test_clip(layout, loaded, tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        eos_token_id=1,
        bos_token_id=2,
        pad_token_id=0,
    )
    oracle = fill(CLIPTextModel(config))
    bare = {n.removeprefix("text_model."): t for n, t in oracle.state_dict().items()}
    state = bare if layout == "bare" else {f"text_model.{n}": t for n, t in bare.items()}
    if layout == "whole":
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        state["text_projection.weight"] = torch.zeros(4, 128)
        state["logit_scale"] = torch.zeros(())
        state["vision_model.post_layernorm.weight"] = torch.zeros(4)
    ours = loaded(CLIP, state)
    tokenizer = load_tokenizer(CLIP, twins.write_tokenizer(tmp_path / "tokenizer"), None)
    tokens = tokenizer(
        CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    expected = oracle(**tokens).pooler_output
    for i, (pooled, mask) in enumerate(network.encode(ours, tokenizer, CAPTIONS)):
        assert torch.equal(mask, tokens["attention_mask"][i])
        assert error(pooled, expected[i]) < 1e-5
