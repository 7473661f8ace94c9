"""What Wan can be asked to do. Plain data: no torch in this file."""

from dataclasses import replace
from typing import Any

from musubi.architectures.wan.denoisers import numbers
from musubi.plugin import Field, Geometry, Input, Lazy, Sampling, Schema, Task, Variant

# Wan's own default, word for word; the models were tuned with it.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
SHAKING = "镜头晃动，"
CUTTING = "镜头切换，"

GEOMETRY = Geometry(channels=16, stride=(4, 8, 8), frame_rate=16.0)
GEOMETRY_5B = Geometry(channels=48, stride=(4, 16, 16), frame_rate=24.0, ratio_first=True)

# inputs

VIDEO = Input(
    name="video",
    kind="video",
    help=(
        "The video to change, or a folder of images in the order of their names. Denoising "
        "starts from its first frames with noise added."
    ),
    flag="video_path",
    hold=False,
)
IMAGE = Input(
    name="image",
    kind="image",
    help="The image that the video starts from; the video takes its proportions.",
    flag="image_path",
    letter="i",
    required=True,
    fit="area",
)
END_IMAGE = Input(
    name="end_image",
    kind="image",
    help="The image that the video ends with.",
    flag="end_image_path",
    letter="ei",
    fit="as_is",
)
CONTROL = Input(
    name="control",
    kind="video",
    help="The control video, or a folder of images in the order of their names.",
    flag="control_path",
    letter="cn",
    aliases=("control_video_path",),
    column="control_path",
    directory="control_directory",
    required=True,
)
REFERENCE = Input(
    name="reference",
    kind="image",
    help="Reference images: one for Fun-Control V1.1, any number for VACE.",
    flag="reference_image_path",
    letter="ri",
    many=True,
)
CONTROL_IMAGES = Input(
    name="control_images",
    kind="image",
    help="The control images of one-frame inference, in the order of control_index.",
    flag="control_image_path",
    letter="ci",
    column="control_path",
    directory="control_directory",
    many=True,
    required=True,
    alpha=True,
)
CONTROL_MASKS = Input(
    name="control_masks",
    kind="mask",
    help="A mask for each control image: where it is black, the image is not seen.",
    flag="control_image_mask_path",
    letter="cim",
    many=True,
)
VACE_MASK = Input(
    name="mask",
    kind="mask",
    help="VACE: a mask video or image; the white parts of the video are generated anew.",
    flag="mask_path",
    letter="m",
    column="mask_path",
    directory="mask_directory",
)
VACE_REFERENCES = Input(
    name="references",
    kind="image",
    help="Reference images: one for Fun-Control V1.1, any number for VACE.",
    flag="reference_image_path",
    letter="ri",
    column="reference_path",
    directory="reference_directory",
    many=True,
    fit="as_is",
)

# records

_T5 = (Field(name="t5", dims="LD", varlen=True, usual=(("L", 128), ("D", "text_dim"))),)
_LATENTS = Field(name="latents", dims="CFHW", sizes=(("C", 16),))
_LATENTS_5B = Field(name="latents", dims="CFHW", sizes=(("C", 48),))
# The video that generation starts from; no cache file holds it.
_VIDEO = Field(name="latents_video", dims="CFHW", sizes=(("C", 16),), optional=True)
_IMAGE = Field(name="latents_image", dims="CFHW", sizes=(("C", 20),))
_CLIP = Field(name="clip", dims="LD", sizes=(("L", 257),), usual=(("D", "image_dim"),))
_CLIPS = Field(name="clip", dims="NLD", sizes=(("L", 257),), usual=(("N", 1), ("D", "image_dim")))
_CONTROL = Field(name="latents_control", dims="CFHW", sizes=(("C", 16),))

TEXT_ONLY = Schema(media=(_LATENTS, _VIDEO), text=_T5)
FROM_IMAGE = Schema(media=(_LATENTS, _IMAGE, _CLIP), text=_T5)
# Names of their own: a record of the first frame alone must not pass for one of both.
FROM_ENDS = Schema(
    media=(
        _LATENTS,
        replace(_IMAGE, name="latents_ends"),
        replace(_CLIPS, name="clip_ends", usual=(("N", 2), ("D", "image_dim"))),
    ),
    text=_T5,
)
WITHOUT_CLIP = Schema(media=(_LATENTS, _IMAGE), text=_T5)
CONTROLLED = Schema(media=(_LATENTS, _CONTROL), text=_T5)
CONTROLLED_IMAGE = Schema(
    media=(
        _LATENTS,
        replace(_IMAGE, optional=True),
        replace(_CLIP, optional=True),
        _CONTROL,
        Field(name="latents_end", dims="CFHW", sizes=(("C", 16),), optional=True),
        Field(name="latents_reference", dims="CFHW", sizes=(("C", 16),), optional=True),
    ),
    text=_T5,
)
ONE_FRAME = Schema(
    media=(
        _LATENTS,
        _IMAGE,
        _CLIPS,
        Field(name="f_indices", dims="F", usual=(("F", 2),)),
        Field(name="latents_weight", dims="CFHW", sizes=(("C", 1),), optional=True),
    ),
    text=_T5,
)
FIRST_FRAME_5B = Schema(
    media=(
        _LATENTS_5B,
        Field(name="latents_image", dims="CFHW", sizes=(("C", 48), ("F", 1)), optional=True),
    ),
    text=_T5,
)
VACE = Schema(
    media=(_LATENTS, Field(name="latents_vace", dims="CFHW", sizes=(("C", 96),))),
    text=_T5,
)

# sampling

SOLVERS = ("unipc", "dpm++", "vanilla", "lcm")
T2V = Sampling(
    steps=50,
    flow_shift=5.0,
    guidance_scale=5.0,
    frames=81,
    solver="unipc",
    solvers=SOLVERS,
    negative_prompt=NEGATIVE_PROMPT,
)
I2V = replace(T2V, steps=40, negative_prompt=SHAKING + NEGATIVE_PROMPT)
FLF2V = replace(T2V, flow_shift=16.0, negative_prompt=CUTTING + SHAKING + NEGATIVE_PROMPT)
T2V_A14B = replace(
    T2V,
    steps=40,
    flow_shift=12.0,
    guidance_scale=3.0,
    options={"guidance_scale_high_noise": 4.0},
)
I2V_A14B = replace(T2V, steps=40, guidance_scale=3.5, options={"guidance_scale_high_noise": 3.5})
TI2V = replace(T2V, frames=121, size=(1280, 704))

# tasks

_ADDRESS = "musubi.architectures.wan"
_SHARED: dict[str, Any] = {
    "texts": Lazy(f"{_ADDRESS}.guidance:texts"),
    "check": Lazy(f"{_ADDRESS}.guidance:check"),
    "check_network": Lazy(f"{_ADDRESS}.guidance:check_layers"),
    "guidance": Lazy(f"{_ADDRESS}.guidance:guided"),
}
_T2V = {"family": "t2v", "in_dim": 16, "vace_dim": 0}
_ONE_FRAME: dict[str, Any] = {
    "usable_frames": Lazy(f"{_ADDRESS}.hooks:single_frame"),
    "example": {
        "fp_1f_clean_indices": [0, 9],
        "fp_1f_target_index": 5,
        "one_frame_inference": "target_index=5,control_index=0;9",
    },
}
_TINY_CLIP = {"image_dim": 80}  # as wide as the image encoder's toy
_IMAGE_DEFAULTS = Lazy(f"{_ADDRESS}.hooks:image_defaults")

TASKS = (
    Task(
        name="t2v",
        title="Text to video",
        requires=_T2V,
        components=("vae", "t5"),
        schema=TEXT_ONLY,
        sampling=T2V,
        inputs=(VIDEO,),
        **_SHARED,
    ),
    Task(
        name="t2i",
        title="Text to image",
        requires=_T2V,
        components=("vae", "t5"),
        schema=TEXT_ONLY,
        sampling=replace(T2V, frames=1),
        inputs=(VIDEO,),
        **_SHARED,
    ),
    Task(
        name="i2v",
        title="Image to video",
        requires={"family": "i2v", "in_dim": 36},
        tiny=_TINY_CLIP,
        components=("vae", "t5", "clip"),
        schema=FROM_IMAGE,
        sampling=I2V,
        inputs=(IMAGE, END_IMAGE),
        adjust=_IMAGE_DEFAULTS,
        **_SHARED,
    ),
    Task(
        name="flf2v",
        title="First and last frame to video",
        requires={"family": "flf2v", "in_dim": 36},
        tiny=_TINY_CLIP,
        components=("vae", "t5", "clip"),
        schema=FROM_ENDS,
        sampling=FLF2V,
        inputs=(IMAGE, replace(END_IMAGE, required=True)),
        usable_frames=Lazy(f"{_ADDRESS}.hooks:both_ends"),
        **_SHARED,
    ),
    Task(
        name="t2v-FC",
        title="Text and a control video to video (Fun-Control)",
        requires={"family": "i2v", "in_dim": 48},
        tiny=_TINY_CLIP,
        components=("vae", "t5"),
        schema=CONTROLLED,
        sampling=T2V,
        inputs=(CONTROL,),
        **_SHARED,
    ),
    Task(
        name="i2v-FC",
        title="Image and a control video to video (Fun-Control)",
        requires={"family": "i2v", "in_dim": 48},
        tiny={**_TINY_CLIP, "reference": True},
        components=("vae", "t5", "clip"),
        schema=CONTROLLED_IMAGE,
        sampling=replace(I2V, negative_prompt=NEGATIVE_PROMPT),
        inputs=(replace(IMAGE, required=False), END_IMAGE, CONTROL, REFERENCE),
        adjust=_IMAGE_DEFAULTS,
        **{**_SHARED, "check": Lazy(f"{_ADDRESS}.hooks:check_control")},
    ),
    Task(
        name="one_frame",
        title="One frame from control images, with an image-to-video model",
        requires={"family": "i2v", "in_dim": 36},
        tiny=_TINY_CLIP,
        components=("vae", "t5", "clip"),
        schema=ONE_FRAME,
        sampling=replace(I2V, frames=1),
        inputs=(IMAGE, END_IMAGE, CONTROL_IMAGES, CONTROL_MASKS),
        adjust=_IMAGE_DEFAULTS,
        **_ONE_FRAME,
        **{**_SHARED, "check": Lazy(f"{_ADDRESS}.hooks:check_one_frame")},
    ),
    Task(
        name="one_frame_flf2v",
        title="One frame from control images, with a first-last-frame model",
        requires={"family": "flf2v", "in_dim": 36},
        tiny=_TINY_CLIP,
        components=("vae", "t5", "clip"),
        schema=ONE_FRAME,
        sampling=replace(FLF2V, frames=1, flow_shift=5.0),
        inputs=(IMAGE, replace(END_IMAGE, required=True), CONTROL_IMAGES, CONTROL_MASKS),
        **_ONE_FRAME,
        **{**_SHARED, "check": Lazy(f"{_ADDRESS}.hooks:check_one_frame")},
    ),
    Task(
        name="t2v-2.2",
        title="Text to video with Wan2.2's two experts",
        requires=_T2V,
        components=("vae", "t5"),
        denoisers=("dit", "dit_high_noise"),
        schema=TEXT_ONLY,
        sampling=T2V_A14B,
        inputs=(VIDEO,),
        intervals=Lazy(f"{_ADDRESS}.experts:t2v"),
        **{**_SHARED, "guidance": Lazy(f"{_ADDRESS}.guidance:guided_t2v")},
    ),
    Task(
        name="i2v-2.2",
        title="Image to video with Wan2.2's two experts",
        requires={"family": "t2v", "in_dim": 36},
        components=("vae", "t5"),
        denoisers=("dit", "dit_high_noise"),
        schema=WITHOUT_CLIP,
        sampling=I2V_A14B,
        inputs=(IMAGE, END_IMAGE),
        intervals=Lazy(f"{_ADDRESS}.experts:i2v"),
        **{**_SHARED, "guidance": Lazy(f"{_ADDRESS}.guidance:guided_i2v")},
    ),
    Task(
        name="ti2v",
        title="Text, and an image if one is given, to video (Wan2.2 5B)",
        requires={"family": "t2v", "in_dim": 48, "out_dim": 48},
        components=("vae22", "t5"),
        schema=FIRST_FRAME_5B,
        sampling=TI2V,
        geometry=GEOMETRY_5B,
        inputs=(replace(IMAGE, required=False),),
        **_SHARED,
    ),
    Task(
        name="ti2v-image",
        title="Image to video (Wan2.2 5B)",
        requires={"family": "t2v", "in_dim": 48, "out_dim": 48},
        components=("vae22", "t5"),
        schema=FIRST_FRAME_5B,
        sampling=TI2V,
        geometry=GEOMETRY_5B,
        inputs=(IMAGE,),
        **_SHARED,
    ),
    Task(
        name="vace",
        title="Control, masks and references to video (VACE)",
        requires={"family": "t2v", "in_dim": 16, "vace_dim": 96},
        tiny={"vace_layers": 2},
        components=("vae", "t5"),
        schema=VACE,
        sampling=replace(T2V, flow_shift=16.0, size=(832, 480)),
        inputs=(replace(CONTROL, required=False), VACE_MASK, VACE_REFERENCES),
        always_encodes=True,  # what is not given is grey, and made anew
        **_SHARED,
    ),
)

VARIANTS = (
    Variant(name="t2v-1.3B", task="t2v", numbers=numbers("1.3B", "t2v", 16)),
    Variant(name="t2v-14B", task="t2v", numbers=numbers("14B", "t2v", 16)),
    Variant(name="t2i-14B", task="t2i", numbers=numbers("14B", "t2v", 16)),
    Variant(name="i2v-14B", task="i2v", numbers=numbers("14B", "i2v", 36)),
    Variant(name="flf2v-14B", task="flf2v", numbers=numbers("14B", "flf2v", 36)),
    Variant(name="t2v-1.3B-FC", task="t2v-FC", numbers=numbers("1.3B", "i2v", 48)),
    Variant(name="t2v-14B-FC", task="t2v-FC", numbers=numbers("14B", "i2v", 48)),
    Variant(name="i2v-1.3B-FC", task="i2v-FC", numbers=numbers("1.3B", "i2v", 48)),
    Variant(name="i2v-14B-FC", task="i2v-FC", numbers=numbers("14B", "i2v", 48)),
    Variant(
        name="i2v-1.3B-FC-1.1",
        task="i2v-FC",
        numbers=numbers("1.3B", "i2v", 48, reference=True),
    ),
    Variant(
        name="i2v-14B-FC-1.1", task="i2v-FC", numbers=numbers("14B", "i2v", 48, reference=True)
    ),
    Variant(name="t2v-A14B", task="t2v-2.2", numbers=numbers("14B", "t2v", 16)),
    Variant(name="i2v-A14B", task="i2v-2.2", numbers=numbers("14B", "t2v", 36)),
    Variant(name="ti2v-5B", task="ti2v", numbers=numbers("5B", "t2v", 48, out_dim=48)),
    Variant(
        name="vace-1.3B",
        task="vace",
        numbers=numbers("1.3B", "t2v", 16, vace_layers=15, vace_dim=96),
    ),
    Variant(
        name="vace-14B",
        task="vace",
        numbers=numbers("14B", "t2v", 16, vace_layers=8, vace_dim=96),
    ),
)
