"""The layouts in which CLIP's image tower is published, as key maps. Plain data: no torch here."""

from musubi.plugin import Fuse, KeyMap, Rename, Squeeze, renamed

_LAYERS = renamed(
    {
        "layer_norm1": "norm1",
        "self_attn.out_proj": "attn.proj",
        "layer_norm2": "norm2",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.2",
    },
    theirs="encoder.layers.{n}.",
    ours="transformer.{n}.",
)
_QKV = Fuse(
    theirs=tuple(f"encoder.layers.{{n}}.self_attn.{x}_proj.{{kind}}" for x in "qkv"),
    ours="transformer.{n}.attn.to_qkv.{kind}",
)
_TRANSFORMERS = (
    Rename(theirs="embeddings.class_embedding", ours="cls_embedding"),
    Rename(theirs="embeddings.position_embedding.weight", ours="pos_embedding"),
    Rename(theirs="embeddings.patch_embedding.{rest}", ours="patch_embedding.{rest}"),
    Rename(theirs="pre_layrnorm.{rest}", ours="pre_norm.{rest}"),
    _QKV,
    *_LAYERS,
)
_MARKER = ("embeddings.class_embedding", "encoder.layers.{n}.self_attn.q_proj.weight")
_UNUSED = ("embeddings.position_ids", "post_layernorm.{rest}", "visual_projection.weight")

CLIP_VISION = (
    # The whole CLIP model in one file: `textual.*` and `log_scale` are left alone.
    KeyMap(
        name="official",
        prefix="visual.",
        marker=("patch_embedding.weight", "transformer.{n}.attn.to_qkv.weight"),
        rules=(
            Squeeze(theirs="cls_embedding", ours="cls_embedding", ones=2, leading=True),
            Squeeze(theirs="pos_embedding", ours="pos_embedding", ones=1, leading=True),
        ),
        drop=("post_norm.{rest}", "head"),
    ),
    # ComfyUI's clip_vision_h.safetensors, and a folder written by transformers 4.
    KeyMap(
        name="transformers",
        prefix="vision_model.",
        marker=_MARKER,
        rules=_TRANSFORMERS,
        drop=_UNUSED,
    ),
    # A folder written by transformers 5.
    KeyMap(name="headless", marker=_MARKER, rules=_TRANSFORMERS, drop=_UNUSED),
)
