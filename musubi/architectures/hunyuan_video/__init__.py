"""Everything that the architecture `hunyuan_video` says about itself. Plain data: no torch in this file."""

from musubi.architectures.hunyuan_video import keys
from musubi.architectures.hunyuan_video.sizes import DIT_TRAITS, FULL, TINY
from musubi.encoders.clip_text.component import CLIP
from musubi.encoders.hunyuan_vae.component import VAE
from musubi.encoders.llama.component import LLM
from musubi.plugin import (
    Architecture,
    Component,
    Field,
    Geometry,
    Input,
    Lazy,
    Option,
    Publication,
    Sampling,
    Schema,
    Task,
    Variant,
)

# As SkyReels' authors suggest it.
SKYREELS_NEGATIVE = (
    "Aerial view, aerial view, overexposed, low quality, deformation, a poor composition, bad hands, "
    "bad teeth, bad eyes, bad limbs, distortion"
)

DIT = Component(
    name="dit",
    role="dit",
    help="The denoiser: mp_rank_00_model_states.pt, a safetensors file, or a diffusers folder.",
    build=Lazy("musubi.architectures.hunyuan_video.dit:HunyuanDiT"),
    infer=Lazy("musubi.architectures.hunyuan_video.dit:infer"),
    dialects=keys.DIT,
    foreign_keys={
        "clean_x_embedder.proj.weight": "a FramePack denoiser",
        "image_projection.up.weight": "a FramePack denoiser",
        "vision_in.proj.0.weight": "a HunyuanVideo 1.5 denoiser",
        "byt5_in.fc1.weight": "a HunyuanVideo 1.5 denoiser",
    },
    traits=DIT_TRAITS,
    dtype="bfloat16",
    tiny=TINY,
)


LATENTS = Field(name="latents", dims="CFHW", sizes=(("C", 16),))
# The video that generation starts from; no cache file holds it.
VIDEO = Field(name="latents_video", dims="CFHW", sizes=(("C", 16),), optional=True)
TEXT = (
    Field(name="llm", dims="LD", sizes=(("L", 256),), usual=(("D", "text_dim"),)),
    Field(name="llm_mask", dims="L", sizes=(("L", 256),)),
    Field(name="clipL", dims="D", usual=(("D", "pooled_dim"),)),
    Field(name="clipL_mask", dims="L", sizes=(("L", 77),)),
)

HUNYUAN = Sampling(
    steps=50,
    flow_shift=7.0,
    guidance_scale=1.0,
    frames=129,
    solver="vanilla",
    solvers=("vanilla", "unipc", "dpm++"),
    options={"embedded_cfg_scale": 6.0},
)
SKYREELS = Sampling(
    steps=30,
    flow_shift=7.0,
    guidance_scale=6.0,
    frames=97,
    solver="vanilla",
    solvers=("vanilla", "unipc", "dpm++"),
    negative_prompt=SKYREELS_NEGATIVE,
    options={"embedded_cfg_scale": 1.0},
)

START_VIDEO = Input(
    name="video",
    kind="video",
    help=(
        "The video to change, or a folder of images in the order of their names. Denoising "
        "starts from its first frames with noise added."
    ),
    flag="video_path",
    hold=False,
)

TASKS = (
    Task(
        name="t2v",
        title="Text to video",
        requires={"in_channels": 16},
        components=("vae", "text_encoder1", "text_encoder2"),
        schema=Schema(media=(LATENTS, VIDEO), text=TEXT),
        sampling=HUNYUAN,
        inputs=(START_VIDEO,),
        check=Lazy("musubi.architectures.hunyuan_video.runtime:check"),
    ),
    Task(
        name="i2v",
        title="Image to video (SkyReels V1)",
        requires={"in_channels": 32},
        components=("vae", "text_encoder1", "text_encoder2"),
        # In training the first latent frame is the image; only generation brings one of its own.
        schema=Schema(
            media=(
                LATENTS,
                Field(name="latents_image", dims="CFHW", sizes=(("C", 16),), optional=True),
                VIDEO,
            ),
            text=TEXT,
        ),
        sampling=SKYREELS,
        inputs=(
            Input(
                name="image",
                kind="image",
                help="The image that the video starts from, for the task i2v.",
                flag="image_path",
                letter="i",
                required=True,
            ),
            START_VIDEO,
        ),
        check=Lazy("musubi.architectures.hunyuan_video.runtime:check"),
    ),
)

VARIANTS = (
    Variant(name="t2v-13B", task="t2v", numbers=FULL),
    Variant(name="skyreels-t2v", task="t2v", numbers=FULL, sampling=SKYREELS),
    Variant(name="skyreels-i2v", task="i2v", numbers={**FULL, "in_channels": 32}),
)

OPTIONS = (
    Option(
        name="vae_tiling",
        type=bool,
        default=False,
        help="Encode in overlapping spatial tiles: less memory, slightly different latents. "
        "Decoding always uses tiles.",
        commands=("cache latents", "train"),
        affects_cache=True,
        saves=True,
    ),
    Option(
        name="vae_spatial_tile_sample_min_size",
        type=int,
        help="Side of a VAE tile in pixels, a multiple of 32; encoding then uses tiles too. "
        "256 when not given.",
        commands=("cache latents", "train", "generate"),
        affects_cache=True,
        saves=128,
    ),
    Option(
        name="vae_temporal_tile_sample_min_size",
        type=int,
        help="Frames of a temporal VAE tile, a multiple of 16; all at once when not given.",
        commands=("cache latents", "train", "generate"),
        affects_cache=True,
        saves=64,
    ),
    Option(
        name="vae_chunk_size",
        type=int,
        help=(
            "How many columns the VAE's convolutions compute at once: fewer need less memory, "
            "with the same result."
        ),
        commands=("cache latents", "train", "generate"),
    ),
    Option(
        name="vae_sample_seed",
        type=int,
        help=(
            "Store a sample of the VAE's distribution, drawn with this seed. When not given, the "
            "mean is stored."
        ),
        commands=("cache latents", "train"),
        affects_cache=True,
    ),
    Option(
        name="guidance_scale",
        type=float,
        default=1.0,
        help="Value of the embedded guidance in training; the same scale as embedded_cfg_scale.",
        commands=("train",),
    ),
    Option(
        name="embedded_cfg_scale",
        type=float,
        help=(
            "Value of the embedded guidance, an input of the network. When not given, 6; for "
            "SkyReels 1."
        ),
        commands=("generate",),
        preview_letter="g",
        written=True,
    ),
    Option(
        name="strength",
        type=float,
        default=0.8,
        help=(
            "With --video_path: the share of the steps to run, above 0 to 1. More changes the "
            "video more; 1 keeps nothing of it."
        ),
        commands=("generate",),
        needs="video_path",
    ),
    Option(
        name="exclude_single_blocks",
        type=bool,
        default=False,
        help="Apply LoRA files only to the double blocks.",
        commands=("generate", "lora merge"),
        lora_exclude=r"single_blocks\..*",
    ),
)

REPACKAGED = "Comfy-Org/HunyuanVideo_repackaged"
COMMUNITY = "hunyuanvideo-community/HunyuanVideo"
SKYREELS_FILES = "Kijai/SkyReels-V1-Hunyuan_comfy"
TENCENT = "Tencent Hunyuan Community License"
SKYWORK = "Skywork Community License"
LLAMA = "Llama 3 Community License"


def _published(
    component: str, repo: str, file: str, size: float, licence: str, *variants: str
) -> Publication:
    return Publication(
        component=component, repo=repo, file=file, size=size, licence=licence, variants=variants
    )


PUBLICATIONS = (
    _published(
        "dit",
        "tencent/HunyuanVideo",
        "hunyuan-video-t2v-720p/transformers/mp_rank_00_model_states.pt",
        25.6,
        TENCENT,
        "t2v-13B",
    ),
    _published(
        "dit",
        "kohya-ss/HunyuanVideo-fp8_e4m3fn-unofficial",
        "mp_rank_00_model_states_fp8.safetensors",
        13.2,
        TENCENT,
        "t2v-13B",
    ),
    _published(
        "dit",
        REPACKAGED,
        "split_files/diffusion_models/hunyuan_video_t2v_720p_bf16.safetensors",
        25.6,
        TENCENT,
        "t2v-13B",
    ),
    _published(
        "dit",
        SKYREELS_FILES,
        "skyreels_hunyuan_t2v_bf16.safetensors",
        25.6,
        SKYWORK,
        "skyreels-t2v",
    ),
    _published(
        "dit",
        SKYREELS_FILES,
        "skyreels_hunyuan_i2v_bf16.safetensors",
        25.6,
        SKYWORK,
        "skyreels-i2v",
    ),
    _published(
        "vae",
        "tencent/HunyuanVideo",
        "hunyuan-video-t2v-720p/vae/pytorch_model.pt",
        0.99,
        TENCENT,
    ),
    _published(
        "vae", REPACKAGED, "split_files/vae/hunyuan_video_vae_bf16.safetensors", 0.49, TENCENT
    ),
    _published("vae", COMMUNITY, "vae/diffusion_pytorch_model.safetensors", 0.99, TENCENT),
    _published(
        "text_encoder1",
        REPACKAGED,
        "split_files/text_encoders/llava_llama3_fp16.safetensors",
        16.1,
        LLAMA,
    ),
    _published(
        "text_encoder1",
        REPACKAGED,
        "split_files/text_encoders/llava_llama3_fp8_scaled.safetensors",
        9.1,
        LLAMA,
    ),
    _published(
        "text_encoder2", REPACKAGED, "split_files/text_encoders/clip_l.safetensors", 0.25, "MIT"
    ),
)

ARCHITECTURE = Architecture(
    name="hunyuan_video",
    title="HunyuanVideo",
    components=(DIT, VAE, LLM, CLIP),
    tasks=TASKS,
    variants=VARIANTS,
    runtime=Lazy("musubi.architectures.hunyuan_video.runtime:HunyuanVideoRuntime"),
    suffix="hv",
    geometry=Geometry(channels=16, stride=(4, 8, 8), frame_rate=24.0),
    options=OPTIONS,
    publications=PUBLICATIONS,
    modelspec=("hunyuan-video", "https://github.com/Tencent/HunyuanVideo"),
    network_modules=("networks.lora",),
)
