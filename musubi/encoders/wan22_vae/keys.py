"""The layouts in which Wan2.2's autoencoder is published, as key maps. Plain data: no torch here."""

from musubi.encoders.wan_vae.keys import RESIDUAL, vae_middle
from musubi.plugin import KeyMap, Rename, renamed


def _levels(theirs: str, ours: str, *, residuals: int, sampler: str) -> tuple[Rename, ...]:
    # A level's residual blocks, then its sampler, which the last level lacks.
    rules: list[Rename] = []
    for index in range(residuals):
        rules += renamed(
            RESIDUAL,
            theirs=f"{theirs}.{{n}}.resnets.{index}.",
            ours=f"{ours}.{{n}}.{ours.split('.')[-1]}.{index}.",
        )
    rules.append(
        Rename(
            theirs=f"{theirs}.{{n}}.{sampler}.{{rest}}",
            ours=f"{ours}.{{n}}.{ours.split('.')[-1]}.{residuals}.{{rest}}",
        )
    )
    return tuple(rules)


WAN22_VAE = (
    # Also ComfyUI's wan2.2_vae.safetensors.
    KeyMap(
        name="official",
        marker=(
            "encoder.conv1.weight",
            "encoder.downsamples.0.downsamples.0.residual.2.weight",
            "decoder.upsamples.0.upsamples.0.residual.2.weight",
        ),
    ),
    KeyMap(
        name="diffusers",
        marker=("encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"),
        rules=(
            *renamed({"quant_conv": "conv1", "post_quant_conv": "conv2"}, theirs="", ours=""),
            *vae_middle("encoder"),
            *vae_middle("decoder"),
            *_levels(
                "encoder.down_blocks", "encoder.downsamples", residuals=2, sampler="downsampler"
            ),
            *_levels("decoder.up_blocks", "decoder.upsamples", residuals=3, sampler="upsampler"),
        ),
    ),
)
