"""The layouts in which the denoiser is published, as key maps. Plain data: no torch in this file.

Our names are those of the released files, which are diffusers' own: of lllyasviel's sets of three,
of Kijai's single files in bfloat16 and in 8 bits.
"""

from musubi.plugin import KeyMap

_MARKER = (
    "x_embedder.proj.weight",
    "clean_x_embedder.proj_4x.weight",
    "image_projection.up.weight",
    "single_transformer_blocks.{n}.proj_mlp.weight",
)

DIT = (
    KeyMap(name="official", marker=_MARKER),
    # As ComfyUI saves a model that it has loaded.
    KeyMap(name="comfyui-checkpoint", marker=_MARKER, prefix="model.diffusion_model."),
)
