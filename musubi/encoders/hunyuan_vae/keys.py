"""Names in published files of HunyuanVideo's autoencoder ↔ ours. Plain data: no torch in this file.

Ours are those of the official file, which diffusers kept.
"""

from musubi.plugin import KeyMap, Squeeze, renamed

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_VAE = (
    "encoder.conv_in.conv.weight",
    "encoder.down_blocks.{n}.resnets.{m}.conv1.conv.weight",
    "post_quant_conv.weight",
)

_LEVELS = 4  # of the autoencoder
# As latent diffusion named its autoencoder, and ComfyUI's repackaged file does: attention is made of
# 1x1x1 convolutions, and the decoder's levels are counted from the picture inwards.
_COMFYUI = (
    *(
        rule
        for side in ("encoder", "decoder")
        for rule in (
            *renamed(
                {"mid.block_1": "mid_block.resnets.0", "mid.block_2": "mid_block.resnets.1"},
                theirs=f"{side}.",
                ours=f"{side}.",
            ),
            *(
                Squeeze(
                    theirs=f"{side}.mid.attn_1.{theirs}.weight",
                    ours=f"{side}.mid_block.attentions.0.{ours}.weight",
                    ones=3,
                )
                for theirs, ours in _ATTENTION.items()
            ),
            *renamed(
                {"norm": "group_norm", **_ATTENTION},
                theirs=f"{side}.mid.attn_1.",
                ours=f"{side}.mid_block.attentions.0.",
            ),
            *renamed({f"{side}.norm_out": f"{side}.conv_norm_out"}),
        )
    ),
    *(
        rule
        for level in range(_LEVELS)
        for theirs, ours, step in (
            (f"encoder.down.{level}", f"encoder.down_blocks.{level}", "down"),
            (f"decoder.up.{_LEVELS - 1 - level}", f"decoder.up_blocks.{level}", "up"),
        )
        for rule in (
            *renamed(
                {"nin_shortcut": "conv_shortcut"},
                theirs=f"{theirs}.block.{{n}}.",
                ours=f"{ours}.resnets.{{n}}.",
            ),
            *renamed(
                {"block.{n}": "resnets.{n}", f"{step}sample": f"{step}samplers.0"},
                theirs=f"{theirs}.",
                ours=f"{ours}.",
            ),
        )
    ),
)

VAE = (
    KeyMap(name="official", marker=_VAE),
    KeyMap(
        name="comfyui",
        marker=(
            "encoder.conv_in.conv.weight",
            "encoder.down.{n}.block.{m}.conv1.conv.weight",
            "decoder.mid.attn_1.q.weight",
            "post_quant_conv.weight",
        ),
        rules=_COMFYUI,
    ),
    # The whole pipeline in one file, or an autoencoder that was saved inside its trainer.
    KeyMap(name="prefixed", marker=_VAE, prefix="vae."),
)
