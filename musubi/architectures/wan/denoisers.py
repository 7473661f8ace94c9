"""Wan's denoisers as components, and their published sizes. Plain data: no torch in this file."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from musubi.architectures.wan import keys
from musubi.plugin import Component, Lazy, LoraTargets, Traits

TINY: Mapping[str, Any] = {
    "family": "t2v",
    "dim": 128,
    "ffn_dim": 256,
    "num_layers": 2,
    "in_dim": 16,
    "out_dim": 16,
    "text_dim": 32,
    "freq_dim": 256,
    "reference": False,
    "vace_layers": 0,
    "vace_dim": 0,
}

DIT = Component(
    name="dit",
    role="dit",
    help=(
        "The denoiser: a file, one shard of several, or a diffusers folder. For models with two "
        "experts: the one for low noise."
    ),
    build=Lazy("musubi.architectures.wan.dit:WanDiT"),
    infer=Lazy("musubi.architectures.wan.dit:infer"),
    dialects=keys.DIT,
    foreign_keys={
        "double_blocks.0.img_attn.qkv.weight": "a FLUX denoiser",
        "transformer_blocks.0.attn.to_q.weight": "a denoiser of another architecture",
        "visual.transformer.resblocks.0.attn.in_proj_weight": "a CLIP image encoder",
    },
    traits=Traits(
        stacks=("blocks",),
        # Vectors and tables: 14B keeps 10 MB of them. The time layers multiply in float32 whatever
        # they are stored in, so they need no entry.
        fp32=(r".*modulation", r".*\.norm[\w]*\..*", r"head\..*"),
        quantize=(
            r"(vace_)?blocks\.\d+\.(self_attn|cross_attn)\.(q|k|v|o|k_img|v_img)\.weight",
            r"(vace_)?blocks\.\d+\.ffn\.[02]\.weight",
        ),
        per_token=(r"(vace_)?blocks\.\d+\.ffn",),
        lora=LoraTargets(
            include=(r"blocks\.\d+\..*",),
            exclude=(
                r".*(patch_embedding|text_embedding|time_embedding|time_projection|norm|head|img_emb).*",
            ),
            groups={
                "attention": (r"blocks\.\d+\.(self_attn|cross_attn)\..*",),
                "self_attention": (r"blocks\.\d+\.self_attn\..*",),
                "cross_attention": (r"blocks\.\d+\.cross_attn\..*",),
                "mlp": (r"blocks\.\d+\.ffn\..*",),
            },
        ),
    ),
    dtype="file",
    tiny=TINY,
)

HIGH = replace(
    DIT,
    name="dit_high_noise",
    help="The denoiser for high noise, for Wan2.2 models with two experts.",
)

_SIZE = {
    "1.3B": {"dim": 1536, "ffn_dim": 8960, "num_layers": 30},
    "5B": {"dim": 3072, "ffn_dim": 14336, "num_layers": 30},
    "14B": {"dim": 5120, "ffn_dim": 13824, "num_layers": 40},
}


def numbers(size: str, family: str, in_dim: int, **more: Any) -> dict[str, Any]:
    """Numbers of a published denoiser."""
    return {
        **_SIZE[size],
        "family": family,
        "in_dim": in_dim,
        "out_dim": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "reference": False,
        "vace_layers": 0,
        "vace_dim": 0,
        **({} if family == "t2v" else {"image_dim": 1280}),
        **more,
    }
