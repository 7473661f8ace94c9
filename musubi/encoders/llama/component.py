"""LLaVA-Llama3 as a component. Plain data: no torch in this file."""

from musubi.encoders.llama import keys
from musubi.plugin import Component, Lazy, Tokenizer, Traits

LLM = Component(
    name="text_encoder1",
    role="text",
    help="LLaVA-Llama3: llava_llama3_fp16.safetensors, or a transformers folder.",
    build=Lazy("musubi.encoders.llama.network:Llama"),
    infer=Lazy("musubi.encoders.llama.network:infer"),
    reads_config=True,
    dialects=keys.LLM,
    traits=Traits(
        stacks=("model.layers",),
        quantize=(
            r"model\.layers\.\d+\.self_attn\.[qkvo]_proj\.weight",
            r"model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight",
        ),
    ),
    dtype="float16",
    fp8="fp8_llm",
    tokenizer=Tokenizer(repo="xtuner/llava-llama-3-8b-v1_1-transformers"),
    tiny={
        "vocab_size": 320,
        "dim": 32,
        "ffn_dim": 64,
        "num_layers": 3,
        "num_heads": 2,
        "num_kv_heads": 1,
    },
    full={
        "vocab_size": 128320,
        "dim": 4096,
        "ffn_dim": 14336,
        "num_layers": 32,
        "num_heads": 32,
        "num_kv_heads": 8,
    },
)
