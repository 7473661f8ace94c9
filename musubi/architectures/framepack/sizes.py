"""The denoiser's sizes and traits. Plain data: no torch in this file."""

from musubi.plugin import LoraTargets, Traits

FULL = {
    "hidden": 3072,
    "double_depth": 20,
    "single_depth": 40,
    "refiner_depth": 2,
    "channels": 16,
    "text_dim": 4096,
    "pooled_dim": 768,
    "image_dim": 1152,
    "guidance": True,
}
"""What `infer` finds in the released 13B files; FramePack and FramePack-F1 have the same sizes."""

TINY = {
    "hidden": 128,
    "double_depth": 2,
    "single_depth": 2,
    "refiner_depth": 1,
    "channels": 16,
    "text_dim": 32,
    "pooled_dim": 16,
    "image_dim": 16,
    "guidance": True,
}
"""A toy: one head of the real size."""

_DOUBLE = r"transformer_blocks\.\d+\."
_SINGLE = r"single_transformer_blocks\.\d+\."


def swapped(blocks: int) -> tuple[int, int]:
    """How many double and single blocks `--blocks_to_swap` means: a double one is twice as large."""
    double = blocks // 2
    return (double, 2 * (blocks - double) + 1) if blocks else (0, 0)


DIT_TRAITS = Traits(
    stacks=("transformer_blocks", "single_transformer_blocks"),
    # Vectors, and the last layer, which multiplies in float32. So do the layers that embed the
    # time, the pooled text and the guidance, whatever they are stored in.
    fp32=(r".*norm[12]?(_q|_k|_added_q|_added_k)?\.(weight|bias)", r"proj_out\..*"),
    quantize=(
        _DOUBLE + r"attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)\.weight",
        _DOUBLE + r"(ff|ff_context)\.net\.(0\.proj|2)\.weight",
        _DOUBLE + r"(norm1|norm1_context)\.linear\.weight",
        _SINGLE + r"(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)\.weight",
    ),
    per_token=(_DOUBLE + r"(ff|ff_context)",),
    swap=swapped,
    lora=LoraTargets(
        include=(r"(single_)?transformer_blocks\.\d+\..*",),
        exclude=(r".*(norm).*",),
        groups={
            "attention": (
                _DOUBLE + r"attn\..*",
                _SINGLE + r"(attn\..*|proj_out)",
            ),
            "mlp": (_DOUBLE + r"(ff|ff_context)\..*", _SINGLE + r"proj_(mlp|out)"),
            "double_blocks": (r"transformer_blocks\.\d+\..*",),
            "single_blocks": (r"single_transformer_blocks\.\d+\..*",),
        },
    ),
)
