"""Names in published CLIP files ↔ ours, which are transformers'. Plain data: no torch in this file."""

from musubi.plugin import KeyMap, Rename

_CLIP = (
    "embeddings.token_embedding.weight",
    "encoder.layers.{n}.self_attn.q_proj.weight",
    "final_layer_norm.weight",
)

CLIP = (
    KeyMap(
        name="transformers",
        marker=tuple(f"text_model.{name}" for name in _CLIP),
        drop=(
            "text_model.embeddings.position_ids",
            "text_projection.weight",
            "logit_scale",
            "vision_model.{rest}",
            "visual_projection.weight",
        ),
    ),
    # As transformers 5 names its module.
    KeyMap(
        name="headless",
        marker=_CLIP,
        rules=(Rename(theirs="{rest}", ours="text_model.{rest}"),),
        drop=("embeddings.position_ids",),
    ),
)
