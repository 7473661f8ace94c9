"""umT5-XXL as a component. Plain data: no torch in this file."""

from musubi.encoders.umt5 import keys
from musubi.plugin import Component, Lazy, Tokenizer, Traits

T5 = Component(
    name="t5",
    role="text",
    help="The umT5-XXL text encoder: models_t5_umt5-xxl-enc-bf16.pth, or a transformers file or folder.",
    build=Lazy("musubi.encoders.umt5.network:build"),
    infer=Lazy("musubi.encoders.umt5.network:infer"),
    reads_config=True,
    dialects=keys.T5,
    traits=Traits(
        stacks=("encoder.block",),
        quantize=(
            r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.[qkvo]\.weight",
            r"encoder\.block\.\d+\.layer\.1\.DenseReluDense\.w(i_0|i_1|o)\.weight",
        ),
    ),
    dtype="bfloat16",
    fp8="fp8_t5",
    tokenizer=Tokenizer(repo="Wan-AI/Wan2.1-T2V-14B", subfolder="google/umt5-xxl"),
    tiny={
        "vocab_size": 320,
        "dim": 32,
        "head_dim": 16,
        "ffn_dim": 64,
        "num_layers": 2,
        "num_heads": 2,
        "num_buckets": 32,
    },
    full={
        "vocab_size": 256384,
        "dim": 4096,
        "head_dim": 64,
        "ffn_dim": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "num_buckets": 32,
    },
)
