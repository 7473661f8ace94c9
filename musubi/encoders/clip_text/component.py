"""CLIP-L's text tower as a component. Plain data: no torch in this file."""

from musubi.encoders.clip_text import keys
from musubi.plugin import Component, Lazy, Tokenizer, Traits

CLIP = Component(
    name="text_encoder2",
    role="text",
    help="CLIP-L: clip_l.safetensors, or a transformers folder.",
    build=Lazy("musubi.encoders.clip_text.network:ClipText"),
    infer=Lazy("musubi.encoders.clip_text.network:infer"),
    reads_config=True,
    dialects=keys.CLIP,
    traits=Traits(
        stacks=("text_model.encoder.layers",),
        quantize=(
            r"text_model\.encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj\.weight",
            r"text_model\.encoder\.layers\.\d+\.mlp\.fc[12]\.weight",
        ),
    ),
    dtype="float16",
    tokenizer=Tokenizer(repo="openai/clip-vit-large-patch14"),
    tiny={
        "vocab_size": 320,
        "dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "positions": 77,
    },
    full={
        "vocab_size": 49408,
        "dim": 768,
        "ffn_dim": 3072,
        "num_layers": 12,
        "positions": 77,
    },
)
