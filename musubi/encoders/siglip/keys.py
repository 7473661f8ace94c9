"""Names in published SigLIP files ↔ ours. Plain data: no torch in this file."""

from musubi.plugin import KeyMap, Rename

_VISION = (
    "embeddings.patch_embedding.weight",
    "encoder.layers.{n}.self_attn.q_proj.weight",
    "post_layernorm.weight",
)
# Attention pooling, which nobody here asks for, and the other half of a whole SigLIP.
_UNUSED = (
    "vision_model.head.{rest}",
    "vision_model.embeddings.position_ids",
    "text_model.{rest}",
    "logit_scale",
    "logit_bias",
)

VISION = (
    # Black Forest Labs' folder image_encoder, and ComfyUI's single file.
    KeyMap(
        name="transformers",
        marker=tuple(f"vision_model.{name}" for name in _VISION),
        drop=_UNUSED,
    ),
    # As transformers 5 names its module.
    KeyMap(
        name="headless",
        marker=_VISION,
        rules=(Rename(theirs="{rest}", ours="vision_model.{rest}"),),
        drop=("head.{rest}", "embeddings.position_ids"),
    ),
)
