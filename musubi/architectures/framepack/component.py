"""FramePack's denoiser as a component. Plain data: no torch in this file."""

from musubi.architectures.framepack import keys
from musubi.architectures.framepack.sizes import DIT_TRAITS, TINY
from musubi.plugin import Component, Lazy

DIT = Component(
    name="dit",
    role="dit",
    help="The denoiser: the first file of FramePackI2V_HY or FramePack_F1_I2V_HY, or its index, its "
    "folder, or Kijai's single file.",
    build=Lazy("musubi.architectures.framepack.dit:PackedDiT"),
    infer=Lazy("musubi.architectures.framepack.dit:infer"),
    dialects=keys.DIT,
    traits=DIT_TRAITS,
    dtype="bfloat16",
    tiny=TINY,
)
