"""CLIP's image tower as a component. Plain data: no torch in this file."""

from musubi.encoders.clip_vision import keys
from musubi.plugin import Component, Lazy, Traits

CLIP_VISION = Component(
    name="clip",
    role="image",
    help="CLIP's image encoder: models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth, "
    "clip_vision_h.safetensors, or a transformers folder.",
    build=Lazy("musubi.encoders.clip_vision.network:ClipVision"),
    infer=Lazy("musubi.encoders.clip_vision.network:infer"),
    reads_config=True,
    dialects=keys.CLIP_VISION,
    foreign_keys={
        "vision_model.head.attention.in_proj_weight": "a SigLIP image encoder",
    },
    traits=Traits(
        stacks=("transformer",),
        fp32=(r"pre_norm\..*", r"transformer\.\d+\.norm[12]\..*"),
        quantize=(
            r"transformer\.\d+\.attn\.(to_qkv|proj)\.weight",
            r"transformer\.\d+\.mlp\.[02]\.weight",
        ),
    ),
    dtype="float16",
    tiny={"dim": 80, "ffn_dim": 96, "num_layers": 3, "patch": 14, "positions": 257},
    full={"dim": 1280, "ffn_dim": 5120, "num_layers": 32, "patch": 14, "positions": 257},
)
