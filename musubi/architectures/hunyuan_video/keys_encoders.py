"""Names in published autoencoder and text encoder files ↔ ours. Plain data: no torch in this file.

Ours are those of the released files: the official VAE's (which diffusers kept) and transformers'.
"""

from musubi.spec import KeyMap, Rename

_VAE = (
    "encoder.conv_in.conv.weight",
    "encoder.down_blocks.{n}.resnets.{m}.conv1.conv.weight",
    "post_quant_conv.weight",
)

VAE = (
    KeyMap(name="official", marker=_VAE),
    # The whole pipeline in one file, or an autoencoder that was saved inside its trainer.
    KeyMap(name="prefixed", marker=_VAE, prefix="vae."),
)

_LLM = ("embed_tokens.weight", "layers.{n}.self_attn.q_proj.weight")

LLM = (
    # Also ComfyUI's single file, which embeds the tokenizer.
    KeyMap(
        name="transformers",
        marker=tuple(f"model.{name}" for name in _LLM),
        drop=("lm_head.weight", "tokenizer"),
    ),
    # diffusers' text_encoder folder: the model without its head.
    KeyMap(
        name="headless",
        marker=_LLM,
        rules=(Rename(theirs="{rest}", ours="model.{rest}"),),
    ),
    # The published LLaVA, of which the language model is read and the rest left alone.
    KeyMap(
        name="llava",
        marker=tuple(f"model.{name}" for name in _LLM),
        prefix="language_model.",
        drop=("lm_head.weight",),
    ),
)

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
