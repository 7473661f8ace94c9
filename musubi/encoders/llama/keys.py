"""Names in published Llama files ↔ ours, which are transformers'. Plain data: no torch in this file."""

from musubi.plugin import KeyMap, Rename

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
