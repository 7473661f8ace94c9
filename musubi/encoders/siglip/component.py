"""SigLIP as a component, for the architectures that look through it. Plain data: no torch here."""

from collections.abc import Mapping

from musubi.encoders.siglip import keys
from musubi.plugin import Component, Lazy, Traits

FULL: Mapping[str, int] = {
    "dim": 1152,
    "ffn_dim": 4304,
    "num_layers": 27,
    "positions": 729,
    "patch": 14,
}
"""so400m, patch 14, 384 pixels."""


def siglip(*, dim: int = 16) -> Component:
    """The vision tower as the component `image_encoder`.

    Args:
        dim: Width of the toy, where another toy network reads its tokens.
    """
    return Component(
        name="image_encoder",
        role="image",
        help="SigLIP's vision tower: sigclip_vision_patch14_384.safetensors, or a folder image_encoder.",
        build=Lazy("musubi.encoders.siglip.network:SiglipVision"),
        infer=Lazy("musubi.encoders.siglip.network:infer"),
        reads_config=True,
        dialects=keys.VISION,
        traits=Traits(
            stacks=("vision_model.encoder.layers",),
            quantize=(
                r"vision_model\.encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj\.weight",
                r"vision_model\.encoder\.layers\.\d+\.mlp\.fc[12]\.weight",
            ),
        ),
        dtype="float16",
        tiny={"dim": dim, "ffn_dim": 2 * dim, "num_layers": 2, "positions": 36, "patch": 64},
        full=FULL,
    )
