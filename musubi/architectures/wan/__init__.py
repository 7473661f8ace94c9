"""Everything that the architecture `wan` (Wan2.1, Wan2.2) says about itself. Plain data: no torch here.

Read `tasks.py` (what it can be asked to do), then `denoisers.py` and `options.py`.
"""

from dataclasses import replace

from musubi.architectures.wan.denoisers import DIT, HIGH
from musubi.architectures.wan.options import DATASET_OPTIONS, OPTIONS
from musubi.architectures.wan.published import PUBLICATIONS
from musubi.architectures.wan.tasks import GEOMETRY, TASKS, VARIANTS
from musubi.encoders.clip_vision.component import CLIP_VISION
from musubi.encoders.umt5.component import T5
from musubi.encoders.wan22_vae.component import WAN22_VAE
from musubi.encoders.wan_vae.component import VAE
from musubi.plugin import Architecture, Lazy

VAE_5B = replace(WAN22_VAE, name="vae22", flag="vae")

ARCHITECTURE = Architecture(
    name="wan",
    title="Wan",
    components=(DIT, HIGH, VAE, VAE_5B, T5, CLIP_VISION),
    tasks=TASKS,
    variants=VARIANTS,
    runtime=Lazy("musubi.architectures.wan.runtime:WanRuntime"),
    suffix="wan",
    geometry=GEOMETRY,
    options=OPTIONS,
    dataset_options=DATASET_OPTIONS,
    publications=PUBLICATIONS,
    modelspec=("wan2.1", "https://github.com/Wan-Video/Wan2.1"),
    network_modules=("networks.lora_wan",),
)
