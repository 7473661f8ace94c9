"""The layouts in which Wan's denoiser is published, as key maps. Plain data: no torch in this file."""

from musubi.plugin import KeyMap, Rename, renamed

_DIT_TOP = renamed(
    {
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
        "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
        "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
        "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
        "proj_out": "head.head",
    },
    theirs="",
    ours="",
)

# diffusers calls the norm before cross-attention norm2; ours, as the official file, norm3.
_DIT_BLOCK = renamed(
    {
        "attn1.to_q": "self_attn.q",
        "attn1.to_k": "self_attn.k",
        "attn1.to_v": "self_attn.v",
        "attn1.to_out.0": "self_attn.o",
        "attn1.norm_q": "self_attn.norm_q",
        "attn1.norm_k": "self_attn.norm_k",
        "attn2.to_q": "cross_attn.q",
        "attn2.to_k": "cross_attn.k",
        "attn2.to_v": "cross_attn.v",
        "attn2.to_out.0": "cross_attn.o",
        "attn2.norm_q": "cross_attn.norm_q",
        "attn2.norm_k": "cross_attn.norm_k",
        "attn2.add_k_proj": "cross_attn.k_img",
        "attn2.add_v_proj": "cross_attn.v_img",
        "attn2.norm_added_k": "cross_attn.norm_k_img",
        "norm2": "norm3",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
    },
    theirs="blocks.{n}.",
    ours="blocks.{n}.",
)

# diffusers numbers VACE's blocks as ours are, and calls their two projections in and out.
_CONTROL_BLOCK = (
    *(Rename(theirs=f"vace_{rule.theirs}", ours=f"vace_{rule.ours}") for rule in _DIT_BLOCK),
    *renamed(
        {"proj_in": "before_proj", "proj_out": "after_proj"},
        theirs="vace_blocks.{n}.",
        ours="vace_blocks.{n}.",
    ),
    Rename(theirs="vace_blocks.{n}.scale_shift_table", ours="vace_blocks.{n}.modulation"),
)

_DIT_OFFICIAL = ("patch_embedding.weight", "blocks.{n}.self_attn.q.weight")

DIT = (
    KeyMap(name="official", marker=_DIT_OFFICIAL),
    KeyMap(name="comfyui", marker=_DIT_OFFICIAL, prefix="model.diffusion_model."),
    KeyMap(
        name="diffusers",
        marker=("patch_embedding.weight", "blocks.{n}.attn1.to_q.weight"),
        rules=(
            *_DIT_TOP,
            *_DIT_BLOCK,
            *_CONTROL_BLOCK,
            Rename(theirs="condition_embedder.image_embedder.pos_embed", ours="img_emb.emb_pos"),
            Rename(theirs="blocks.{n}.scale_shift_table", ours="blocks.{n}.modulation"),
            Rename(theirs="scale_shift_table", ours="head.modulation"),
        ),
        # written by early conversions, never used
        drop=(
            "blocks.{n}.attn2.norm_added_q.{rest}",
            "vace_blocks.{n}.attn2.norm_added_q.{rest}",
        ),
    ),
)
