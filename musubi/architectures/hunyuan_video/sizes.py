"""The denoiser's sizes and traits. Plain data: no torch in this file."""

from musubi.plugin import LoraTargets, Traits

FULL = {
    "hidden": 3072,
    "double_depth": 20,
    "single_depth": 40,
    "refiner_depth": 2,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "pooled_dim": 768,
    "guidance": True,
}
"""What `infer` finds in the released 13B file; SkyReels V1 image to video has 32 `in_channels`."""

TINY = {
    "hidden": 128,
    "double_depth": 2,
    "single_depth": 2,
    "refiner_depth": 1,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "pooled_dim": 16,
    "guidance": True,
}
"""A toy: one head of the real size."""

_DOUBLE = r"double_blocks\.\d+\.(img|txt)_"
# In a single block attention and feed-forward share their two layers: these are in both groups.
_SINGLE = r"single_blocks\.\d+\.linear[12]"


def swapped(blocks: int) -> tuple[int, int]:
    """How many double and single blocks `--blocks_to_swap` means: a double one is twice as large."""
    double = blocks // 2
    return (double, 2 * (blocks - double) + 1) if blocks else (0, 0)


DIT_TRAITS = Traits(
    stacks=("double_blocks", "single_blocks"),
    # Vectors, and the last layer of 200,000 numbers. The layers that embed the time, the pooled
    # text and the guidance multiply in float32 whatever they are stored in, and need no entry.
    fp32=(r".*norm[12]?\.(weight|bias)", r"final_layer\.linear\..*"),
    # As in the official 8-bit file: every linear layer of the blocks, a quarter of it modulation.
    quantize=(
        _DOUBLE + r"(attn_qkv|attn_proj|mlp\.fc[12]|mod\.linear)\.weight",
        r"single_blocks\.\d+\.(linear[12]|modulation\.linear)\.weight",
    ),
    per_token=(_DOUBLE + "mlp",),
    swap=swapped,
    lora=LoraTargets(
        include=(r"(double|single)_blocks\.\d+\..*",),
        exclude=(r".*(img_mod|txt_mod|modulation).*",),
        groups={
            "attention": (_DOUBLE + r"attn_(qkv|proj)", _SINGLE),
            "mlp": (_DOUBLE + r"mlp\.fc[12]", _SINGLE),
            "double_blocks": (r"double_blocks\.\d+\..*",),
            "single_blocks": (r"single_blocks\.\d+\..*",),
        },
    ),
)
