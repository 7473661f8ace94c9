"""The layouts in which Wan's files are published, as key maps. Plain data: no torch in this file."""

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
            Rename(theirs="condition_embedder.image_embedder.pos_embed", ours="img_emb.emb_pos"),
            Rename(theirs="blocks.{n}.scale_shift_table", ours="blocks.{n}.modulation"),
            Rename(theirs="scale_shift_table", ours="head.modulation"),
        ),
        drop=("blocks.{n}.attn2.norm_added_q.{rest}",),  # written by early conversions, never used
    ),
)

# One residual block: norm, SiLU, conv, norm, SiLU, dropout, conv.
_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


def _vae_middle(side: str) -> tuple[Rename, ...]:
    resnets = [
        rule
        for index, place in ((0, 0), (1, 2))
        for rule in renamed(
            _RESIDUAL,
            theirs=f"{side}.mid_block.resnets.{index}.",
            ours=f"{side}.middle.{place}.",
        )
    ]
    attention = Rename(
        theirs=f"{side}.mid_block.attentions.0.{{rest}}", ours=f"{side}.middle.1.{{rest}}"
    )
    ends = renamed(
        {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"},
        theirs=f"{side}.",
        ours=f"{side}.",
    )
    return (*resnets, attention, *ends)


def _vae_upsamples() -> tuple[Rename, ...]:
    # Four groups of three residual blocks and, but for the last, one upsampler: counted through
    # in the official file, nested in diffusers'.
    rules: list[Rename] = []
    for group in range(4):
        theirs = f"decoder.up_blocks.{group}"
        for index in range(3):
            rules += renamed(
                _RESIDUAL,
                theirs=f"{theirs}.resnets.{index}.",
                ours=f"decoder.upsamples.{4 * group + index}.",
            )
        rules.append(
            Rename(
                theirs=f"{theirs}.upsamplers.0.{{rest}}",
                ours=f"decoder.upsamples.{4 * group + 3}.{{rest}}",
            )
        )
    return tuple(rules)


VAE = (
    KeyMap(
        name="official",
        marker=("encoder.conv1.weight", "decoder.middle.0.residual.2.weight", "conv2.weight"),
    ),
    KeyMap(
        name="diffusers",
        marker=("encoder.conv_in.weight", "decoder.up_blocks.{n}.resnets.{m}.conv1.weight"),
        rules=(
            *renamed({"quant_conv": "conv1", "post_quant_conv": "conv2"}, theirs="", ours=""),
            *_vae_middle("encoder"),
            *_vae_middle("decoder"),
            *renamed(_RESIDUAL, theirs="encoder.down_blocks.{n}.", ours="encoder.downsamples.{n}."),
            Rename(theirs="encoder.down_blocks.{n}.{rest}", ours="encoder.downsamples.{n}.{rest}"),
            *_vae_upsamples(),
        ),
    ),
)

_T5_BLOCK = renamed(
    {
        "norm1": "layer.0.layer_norm",
        "attn.q": "layer.0.SelfAttention.q",
        "attn.k": "layer.0.SelfAttention.k",
        "attn.v": "layer.0.SelfAttention.v",
        "attn.o": "layer.0.SelfAttention.o",
        "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
        "norm2": "layer.1.layer_norm",
        "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
        "ffn.fc1": "layer.1.DenseReluDense.wi_1",
        "ffn.fc2": "layer.1.DenseReluDense.wo",
    },
    theirs="blocks.{n}.",
    ours="encoder.block.{n}.",
)

T5 = (
    KeyMap(
        name="official",
        marker=("token_embedding.weight", "blocks.{n}.attn.q.weight"),
        rules=(
            Rename(theirs="token_embedding.{rest}", ours="shared.{rest}"),
            Rename(theirs="norm.{rest}", ours="encoder.final_layer_norm.{rest}"),
            *_T5_BLOCK,
        ),
    ),
    # Also ComfyUI's file, which embeds the tokenizer; the second name of the table is its copy.
    KeyMap(
        name="transformers",
        marker=("shared.weight", "encoder.block.{n}.layer.0.SelfAttention.q.weight"),
        drop=("spiece_model", "encoder.embed_tokens.weight"),
    ),
)
