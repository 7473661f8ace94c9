"""Everything that the architecture `framepack` says about itself. Plain data: no torch in this file."""

from dataclasses import replace
from typing import Any

from musubi.architectures.framepack.component import DIT
from musubi.architectures.framepack.flags import DATASET_OPTIONS, OPTIONS
from musubi.architectures.framepack.layout import WINDOW, frames_of
from musubi.architectures.framepack.sizes import FULL, TINY
from musubi.encoders.clip_text.component import CLIP
from musubi.encoders.hunyuan_vae.component import VAE
from musubi.encoders.llama.component import LLM
from musubi.encoders.siglip.component import siglip
from musubi.plugin import (
    Architecture,
    Field,
    Geometry,
    Input,
    Lazy,
    Publication,
    Sampling,
    Schema,
    Task,
    Tokenizer,
    Variant,
)

COMMUNITY = "hunyuanvideo-community/HunyuanVideo"
SIGLIP = siglip(dim=TINY["image_dim"])
COMPONENTS = (
    DIT,
    VAE,
    replace(LLM, tokenizer=Tokenizer(repo=COMMUNITY, subfolder="tokenizer")),
    replace(CLIP, tokenizer=Tokenizer(repo=COMMUNITY, subfolder="tokenizer_2")),
    SIGLIP,
)


def _latents(
    name: str, frames: int | None = None, *, many: bool = False, optional: bool = False
) -> Field:
    sizes = (("C", 16),) if frames is None else (("C", 16), ("F", frames))
    return Field(name=name, dims="CFHW", sizes=sizes, many=many, optional=optional)


def _indices(name: str, *, usual: int, optional: bool = False) -> Field:
    return Field(name=name, dims="F", usual=(("F", usual),), optional=optional, whole=True)


_TOKENS = (("L", 729), ("D", "image_dim"))
TEXT = (
    Field(name="llama_vec", dims="LD", sizes=(("L", 512),), usual=(("D", "text_dim"),)),
    Field(name="llama_attention_mask", dims="L", sizes=(("L", 512),)),
    Field(name="clip_l_pooler", dims="D", usual=(("D", "pooled_dim"),)),
)
SECTION = (
    # Of a video, one section.
    Field(name="latents", dims="CFHW", sizes=(("C", 16),), usual=(("F", WINDOW),)),
    _latents("latents_clean", 2),
    _latents("latents_clean_2x", 2),
    _latents("latents_clean_4x", 16),
    _indices("latent_indices", usual=WINDOW),
    _indices("clean_latent_indices", usual=2),
    _indices("clean_latent_2x_indices", usual=2),
    _indices("clean_latent_4x_indices", usual=16),
    Field(name="image_embeddings", dims="LD", usual=_TOKENS),
    # What a video to make starts from; no cache file holds it.
    _latents("latents_start", 1, many=True, optional=True),
    Field(name="picture_embeddings", dims="LD", usual=_TOKENS, many=True, optional=True),
    _latents("latents_end", 1, optional=True),
)
SINGLE = (
    _latents("latents", 1),
    Field(name="latents_clean", dims="CKHW", sizes=(("C", 16),), usual=(("K", 2),)),
    _indices("latent_indices", usual=1),
    _indices("clean_latent_indices", usual=2),
    _indices("clean_latent_2x_indices", usual=2, optional=True),
    _indices("clean_latent_4x_indices", usual=16, optional=True),
    Field(name="image_embeddings", dims="LD", usual=_TOKENS),
)

# As MagCache's authors measured them for HunyuanVideo at 960x544 and 50 steps, from which this model
# was trained further; https://github.com/Zehong-Ma/MagCache.
MAG_RATIOS = (
    1.0, 1.06971, 1.29073, 1.11245, 1.09596, 1.05233, 1.01415, 1.05672, 1.00848, 1.03632,
    1.02974, 1.00984, 1.03028, 1.00681, 1.06614, 1.05022, 1.02592, 1.01776, 1.02985, 1.00726,
    1.03727, 1.01502, 1.00992, 1.03371, 0.9976, 1.02742, 1.0093, 1.01869, 1.00815, 1.01461,
    1.01152, 1.03082, 1.0061, 1.02162, 1.01999, 0.99063, 1.01186, 1.0217, 0.99947, 1.01711,
    0.9904, 1.00258, 1.00878, 0.97039, 0.97686, 0.94315, 0.97728, 0.91154, 0.86139, 0.76592,
)  # fmt: skip

SAMPLING = Sampling(
    steps=25,
    flow_shift=None,
    guidance_scale=1.0,
    frames=frames_of(4, WINDOW),
    solver="unipc",
    solvers=("unipc",),
    solver_names={"unipc": "unipc-flow"},
    mag_ratios=MAG_RATIOS,
    options={"embedded_cfg_scale": 10.0},
)
HOOKS: dict[str, Any] = {
    "guidance": Lazy("musubi.architectures.framepack.sampling:guided"),
    "sigmas": Lazy("musubi.architectures.framepack.sampling:sigmas"),
}
_HERE = "musubi.architectures.framepack.options"
NETWORKS = ("vae", "image_encoder", "text_encoder1", "text_encoder2")

TASKS = (
    Task(
        name="i2v",
        title="Image to video, by sections",
        requires={"channels": 16},
        components=NETWORKS,
        schema=Schema(media=SECTION, text=TEXT, sectioned=True),
        sampling=SAMPLING,
        inputs=(
            Input(
                name="image",
                kind="image",
                help=(
                    "The image that the video starts from. One image for each section: "
                    "0:a.png;;;-1:b.png."
                ),
                flag="image_path",
                letter="i",
                many=True,
                paths=Lazy(f"{_HERE}:pictures"),
            ),
            Input(
                name="end_image",
                kind="image",
                help=(
                    "The image that the video ends with; only if the last section is made first "
                    "(without --f1)."
                ),
                flag="end_image_path",
                letter="ei",
            ),
        ),
        always_encodes=True,
        usable_frames=Lazy(f"{_HERE}:usable_frames"),
        frames=Lazy(f"{_HERE}:frames"),
        check=Lazy(f"{_HERE}:check"),
        example={"latent_window_size": 1, "video_sections": 2},
        texts=Lazy(f"{_HERE}:texts"),
        **HOOKS,
    ),
    Task(
        name="one_frame",
        title="Single frames, from control images",
        requires={"channels": 16},
        components=NETWORKS,
        schema=Schema(media=SINGLE, text=TEXT),
        sampling=replace(SAMPLING, frames=1),
        inputs=(
            Input(
                name="image",
                kind="image",
                help="The image for the image encoder; the first control image when not given.",
                flag="image_path",
                letter="i",
            ),
            Input(
                name="control",
                kind="image",
                help="Control images; their transparent parts are hidden from the model.",
                flag="control_image_path",
                letter="ci",
                column="control_path",
                directory="control_directory",
                many=True,
                alpha=True,
                leads="one_frame_auto_resize",
            ),
            Input(
                name="control_mask",
                kind="mask",
                help=(
                    "A mask for each control image: the model sees the white parts. Used instead "
                    "of the image's transparency."
                ),
                flag="control_image_mask_path",
                letter="cim",
                many=True,
                beside="control",
            ),
        ),
        always_encodes=True,
        usable_frames=Lazy(f"{_HERE}:only_one"),
        frames=Lazy(f"{_HERE}:one"),
        check=Lazy(f"{_HERE}:check_single"),
        example={"fp_1f_clean_indices": [0, 10]},
        **HOOKS,
    ),
)

VARIANTS = (
    Variant(name="FramePackI2V_HY", task="i2v", numbers=FULL),
    Variant(name="FramePack_F1_I2V_HY", task="i2v", numbers=FULL),
)

TENCENT = "Tencent Hunyuan Community License"
LLAMA = "Llama 3 Community License"
REPACKAGED = "Comfy-Org/HunyuanVideo_repackaged"


def _published(
    component: str, repo: str, file: str, size: float, licence: str, *variants: str
) -> Publication:
    return Publication(
        component=component, repo=repo, file=file, size=size, licence=licence, variants=variants
    )


PUBLICATIONS = (
    *(
        _published(
            "dit",
            f"lllyasviel/{repo}",
            f"diffusion_pytorch_model-0000{number}-of-00003.safetensors",
            size,
            TENCENT,
            variant,
        )
        for repo, variant in (
            ("FramePackI2V_HY", "FramePackI2V_HY"),
            ("FramePack_F1_I2V_HY_20250503", "FramePack_F1_I2V_HY"),
        )
        for number, size in ((1, 9.97), (2, 9.99), (3, 5.79))
    ),
    _published(
        "dit",
        "Kijai/HunyuanVideo_comfy",
        "FramePackI2V_HY_bf16.safetensors",
        25.7,
        TENCENT,
        "FramePackI2V_HY",
    ),
    _published("vae", COMMUNITY, "vae/diffusion_pytorch_model.safetensors", 0.99, TENCENT),
    _published(
        "vae", REPACKAGED, "split_files/vae/hunyuan_video_vae_bf16.safetensors", 0.49, TENCENT
    ),
    _published(
        "text_encoder1",
        REPACKAGED,
        "split_files/text_encoders/llava_llama3_fp16.safetensors",
        16.1,
        LLAMA,
    ),
    _published(
        "text_encoder2", REPACKAGED, "split_files/text_encoders/clip_l.safetensors", 0.25, "MIT"
    ),
    _published(
        "image_encoder",
        "Comfy-Org/sigclip_vision_384",
        "sigclip_vision_patch14_384.safetensors",
        0.86,
        "Apache-2.0",
    ),
    _published(
        "image_encoder",
        "lllyasviel/flux_redux_bfl",
        "image_encoder/model.safetensors",
        0.86,
        "FLUX.1 [dev] Non-Commercial License",
    ),
)

ARCHITECTURE = Architecture(
    name="framepack",
    title="FramePack",
    components=COMPONENTS,
    tasks=TASKS,
    variants=VARIANTS,
    runtime=Lazy("musubi.architectures.framepack.runtime:FramePackRuntime"),
    suffix="fp",
    geometry=Geometry(channels=16, stride=(4, 8, 8), frame_rate=30.0),
    options=OPTIONS,
    dataset_options=DATASET_OPTIONS,
    publications=PUBLICATIONS,
    modelspec=("framepack", "https://github.com/lllyasviel/FramePack"),
    network_modules=("networks.lora_framepack",),
)
