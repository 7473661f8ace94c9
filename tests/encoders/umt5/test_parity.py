"""umT5 against transformers, float32, toy sizes, through the real key maps."""

import pytest
import torch

from musubi.encoders.umt5 import keys
from musubi.encoders.umt5.component import T5
from musubi.testing.twins import fill

pytestmark = pytest.mark.parity


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


# The official file's names, written out: the key map must not be its own witness.
OFFICIAL_T5 = {
    "shared.weight": "token_embedding.weight",
    "encoder.final_layer_norm.weight": "norm.weight",
    "SelfAttention.q.weight": "attn.q.weight",
    "SelfAttention.k.weight": "attn.k.weight",
    "SelfAttention.v.weight": "attn.v.weight",
    "SelfAttention.o.weight": "attn.o.weight",
    "SelfAttention.relative_attention_bias.weight": "pos_embedding.embedding.weight",
    "0.layer_norm.weight": "norm1.weight",
    "DenseReluDense.wi_0.weight": "ffn.gate.0.weight",
    "DenseReluDense.wi_1.weight": "ffn.fc1.weight",
    "DenseReluDense.wo.weight": "ffn.fc2.weight",
    "1.layer_norm.weight": "norm2.weight",
}


def official_t5_name(name):
    if name in OFFICIAL_T5:
        return OFFICIAL_T5[name]
    _, _, block, _, layer, rest = name.split(".", 5)
    return f"blocks.{block}.{OFFICIAL_T5.get(rest) or OFFICIAL_T5[f'{layer}.{rest}']}"


@pytest.mark.parametrize("layout", ["official", "transformers"])
def test_t5(layout, loaded):
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=300,
        d_model=32,
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    oracle = fill(UMT5EncoderModel(config))
    state = oracle.state_dict()
    if layout == "official":
        state.pop("encoder.embed_tokens.weight")
        state = {official_t5_name(name): tensor for name, tensor in state.items()}
    else:
        state["encoder.embed_tokens.weight"] = state["shared.weight"].clone()
        state["spiece_model"] = torch.zeros(10, dtype=torch.uint8)
    assert [d.name for d in keys.T5 if d.recognises(state)] == [layout]
    ours = loaded(T5, state, ".pth" if layout == "official" else ".safetensors")
    ids = torch.randint(3, 300, (2, 40))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    expected = oracle(input_ids=ids, attention_mask=mask).last_hidden_state
    found = ours(ids, mask)
    assert error(found[0], expected[0]) < 1e-5
    assert error(found[1, :9], expected[1, :9]) < 1e-5
