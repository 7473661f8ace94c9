"""The layouts in which umT5 is published, as key maps. Plain data: no torch in this file."""

from musubi.plugin import KeyMap, Rename, renamed

_T5_BLOCK = renamed(
    {
        "norm1": "layer.0.layer_norm",
        "attn.q": "layer.0.SelfAttention.q",
        "attn.k": "layer.0.SelfAttention.k",
        "attn.v": "layer.0.SelfAttention.v",
        "attn.o": "layer.0.SelfAttention.o",
        "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
        "norm2": "layer.1.layer_norm",
        "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
        "ffn.fc1": "layer.1.DenseReluDense.wi_1",
        "ffn.fc2": "layer.1.DenseReluDense.wo",
    },
    theirs="blocks.{n}.",
    ours="encoder.block.{n}.",
)

T5 = (
    KeyMap(
        name="official",
        marker=("token_embedding.weight", "blocks.{n}.attn.q.weight"),
        rules=(
            Rename(theirs="token_embedding.{rest}", ours="shared.{rest}"),
            Rename(theirs="norm.{rest}", ours="encoder.final_layer_norm.{rest}"),
            *_T5_BLOCK,
        ),
    ),
    # Also ComfyUI's file, which embeds the tokenizer; the second name of the table is its copy.
    KeyMap(
        name="transformers",
        marker=("shared.weight", "encoder.block.{n}.layer.0.SelfAttention.q.weight"),
        drop=("spiece_model", "encoder.embed_tokens.weight"),
    ),
)
