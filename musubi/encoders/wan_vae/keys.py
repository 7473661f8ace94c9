"""The layouts in which Wan's autoencoder is published, as key maps. Plain data: no torch in this file."""

from musubi.plugin import KeyMap, Rename, renamed

# One residual block: norm, SiLU, conv, norm, SiLU, dropout, conv.
RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


def vae_middle(side: str) -> tuple[Rename, ...]:
    """Rules for what encoder and decoder have alike: the lowest level, and both ends."""
    resnets = [
        rule
        for index, place in ((0, 0), (1, 2))
        for rule in renamed(
            RESIDUAL,
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
                RESIDUAL,
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
            *vae_middle("encoder"),
            *vae_middle("decoder"),
            *renamed(RESIDUAL, theirs="encoder.down_blocks.{n}.", ours="encoder.downsamples.{n}."),
            Rename(theirs="encoder.down_blocks.{n}.{rest}", ours="encoder.downsamples.{n}.{rest}"),
            *_vae_upsamples(),
        ),
    ),
)
