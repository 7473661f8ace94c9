"""Everything that the architecture `wan` (Wan2.1) says about itself. Plain data: no torch in this file."""

from musubi.architectures.wan import keys
from musubi.encoders.umt5.component import T5
from musubi.encoders.wan_vae.component import VAE
from musubi.plugin import (
    Architecture,
    Component,
    Field,
    Geometry,
    Lazy,
    LoraTargets,
    Option,
    Publication,
    Sampling,
    Schema,
    Task,
    Traits,
    Variant,
)

# Wan's own default, word for word; the models were tuned with it.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

DIT = Component(
    name="dit",
    role="dit",
    help="The denoiser: a file, one shard of several, or a diffusers folder.",
    build=Lazy("musubi.architectures.wan.dit:WanDiT"),
    infer=Lazy("musubi.architectures.wan.dit:infer"),
    dialects=keys.DIT,
    foreign_keys={
        "double_blocks.0.img_attn.qkv.weight": "a FLUX denoiser",
        "transformer_blocks.0.attn.to_q.weight": "a denoiser of another architecture",
        "visual.transformer.resblocks.0.attn.in_proj_weight": "a CLIP image encoder",
    },
    traits=Traits(
        stacks=("blocks",),
        # Vectors and tables: 14B keeps 10 MB of them. The time layers multiply in float32 whatever
        # they are stored in, so they need no entry.
        fp32=(r".*modulation", r".*\.norm[\w]*\..*", r"head\..*"),
        quantize=(
            r"blocks\.\d+\.(self_attn|cross_attn)\.(q|k|v|o|k_img|v_img)\.weight",
            r"blocks\.\d+\.ffn\.[02]\.weight",
        ),
        per_token=(r"blocks\.\d+\.ffn",),
        lora=LoraTargets(
            include=(r"blocks\.\d+\..*",),
            exclude=(
                r".*(patch_embedding|text_embedding|time_embedding|time_projection|norm|head).*",
            ),
            groups={
                "attention": (r"blocks\.\d+\.(self_attn|cross_attn)\..*",),
                "self_attention": (r"blocks\.\d+\.self_attn\..*",),
                "cross_attention": (r"blocks\.\d+\.cross_attn\..*",),
                "mlp": (r"blocks\.\d+\.ffn\..*",),
            },
        ),
    ),
    dtype="file",
    tiny={
        "family": "t2v",
        "dim": 128,
        "ffn_dim": 256,
        "num_layers": 2,
        "in_dim": 16,
        "out_dim": 16,
        "text_dim": 32,
        "freq_dim": 256,
        "reference": False,
        "vace_layers": 0,
    },
)


TEXT_TO_VIDEO = Schema(
    media=(Field(name="latents", dims="CFHW", sizes=(("C", 16),)),),
    text=(Field(name="t5", dims="LD", varlen=True, usual=(("L", 128), ("D", "text_dim"))),),
)

T2V = Sampling(
    steps=50,
    flow_shift=5.0,
    guidance_scale=5.0,
    frames=81,
    solver="unipc",
    solvers=("unipc", "dpm++", "vanilla", "lcm"),
    negative_prompt=NEGATIVE_PROMPT,
)
T2I = Sampling(
    steps=50,
    flow_shift=5.0,
    guidance_scale=5.0,
    frames=1,
    solver="unipc",
    solvers=("unipc", "dpm++", "vanilla", "lcm"),
    negative_prompt=NEGATIVE_PROMPT,
)

# Skip-layer guidance, which every task has.
CHECK = Lazy("musubi.architectures.wan.guidance:check")
TEXTS = Lazy("musubi.architectures.wan.guidance:texts")
GUIDANCE = Lazy("musubi.architectures.wan.guidance:guided")

TASKS = (
    Task(
        name="t2v",
        title="Text to video",
        requires={"family": "t2v", "in_dim": 16},
        components=("vae", "t5"),
        schema=TEXT_TO_VIDEO,
        sampling=T2V,
        check=CHECK,
        texts=TEXTS,
        guidance=GUIDANCE,
    ),
    Task(
        name="t2i",
        title="Text to image",
        requires={"family": "t2v", "in_dim": 16},
        components=("vae", "t5"),
        schema=TEXT_TO_VIDEO,
        sampling=T2I,
        check=CHECK,
        texts=TEXTS,
        guidance=GUIDANCE,
    ),
)

SIZE_1_3B = {"dim": 1536, "ffn_dim": 8960, "num_layers": 30, "out_dim": 16}
SIZE_14B = {"dim": 5120, "ffn_dim": 13824, "num_layers": 40, "out_dim": 16}
TEXT = {"family": "t2v", "in_dim": 16, "text_dim": 4096, "freq_dim": 256}

VARIANTS = (
    Variant(name="t2v-1.3B", task="t2v", numbers={**SIZE_1_3B, **TEXT}),
    Variant(name="t2v-14B", task="t2v", numbers={**SIZE_14B, **TEXT}),
    Variant(name="t2i-14B", task="t2i", numbers={**SIZE_14B, **TEXT}),
)

OPTIONS = (
    Option(
        name="vae_tiling",
        type=bool,
        default=False,
        help="Encode and decode in overlapping spatial tiles: less memory, slightly different frames.",
        commands=("cache latents", "train", "generate"),
        affects_cache=True,
        saves=True,
    ),
    Option(
        name="vae_cache_cpu",
        type=bool,
        default=False,
        help="Keep the VAE's feature cache in host memory: slower, 1 to 2 GB less on the device.",
        commands=("cache latents", "train", "generate"),
        saves=True,
    ),
    Option(
        name="vae_tile_size",
        type=int,
        default=256,
        help="Side of a VAE tile in pixels, a multiple of 32, when tiling.",
        commands=("cache latents", "train", "generate"),
        affects_cache=True,
    ),
    Option(
        name="slg_layers",
        type=str,
        help="Skip-layer guidance: numbers of the blocks to leave out, such as 9,10.",
        commands=("generate",),
    ),
    Option(
        name="slg_mode",
        type=str,
        choices=("original", "uncond"),
        help="Skip-layer guidance: beside the unconditional call (original), or instead of it (uncond).",
        commands=("generate",),
    ),
    Option(
        name="slg_scale",
        type=float,
        default=3.0,
        help="Skip-layer guidance: its strength in the mode original.",
        commands=("generate",),
    ),
    Option(
        name="slg_start",
        type=float,
        default=0.0,
        help="Skip-layer guidance: where it begins, as a part of the steps.",
        commands=("generate",),
    ),
    Option(
        name="slg_end",
        type=float,
        default=0.3,
        help="Skip-layer guidance: where it ends, as a part of the steps.",
        commands=("generate",),
    ),
)

REPACKAGED = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"


def _published(component: str, repo: str, file: str, size: float, *variants: str) -> Publication:
    return Publication(
        component=component,
        repo=repo,
        file=file,
        size=size,
        licence="Apache-2.0",
        variants=variants,
    )


_DIFFUSION = "split_files/diffusion_models"
PUBLICATIONS = (
    _published(
        "dit", REPACKAGED, f"{_DIFFUSION}/wan2.1_t2v_1.3B_bf16.safetensors", 2.84, "t2v-1.3B"
    ),
    _published(
        "dit", REPACKAGED, f"{_DIFFUSION}/wan2.1_t2v_1.3B_fp16.safetensors", 2.84, "t2v-1.3B"
    ),
    _published(
        "dit",
        "Wan-AI/Wan2.1-T2V-1.3B",
        "diffusion_pytorch_model.safetensors",
        5.68,
        "t2v-1.3B",
    ),
    _published(
        "dit",
        REPACKAGED,
        f"{_DIFFUSION}/wan2.1_t2v_14B_bf16.safetensors",
        28.6,
        "t2v-14B",
        "t2i-14B",
    ),
    _published(
        "dit",
        REPACKAGED,
        f"{_DIFFUSION}/wan2.1_t2v_14B_fp16.safetensors",
        28.6,
        "t2v-14B",
        "t2i-14B",
    ),
    _published(
        "dit",
        REPACKAGED,
        f"{_DIFFUSION}/wan2.1_t2v_14B_fp8_e4m3fn.safetensors",
        14.3,
        "t2v-14B",
        "t2i-14B",
    ),
    _published(
        "dit",
        REPACKAGED,
        f"{_DIFFUSION}/wan2.1_t2v_14B_fp8_scaled.safetensors",
        14.3,
        "t2v-14B",
        "t2i-14B",
    ),
    _published("vae", "Wan-AI/Wan2.1-T2V-1.3B", "Wan2.1_VAE.pth", 0.51),
    _published("vae", REPACKAGED, "split_files/vae/wan_2.1_vae.safetensors", 0.25),
    _published("t5", "Wan-AI/Wan2.1-T2V-1.3B", "models_t5_umt5-xxl-enc-bf16.pth", 11.4),
    _published("t5", REPACKAGED, "split_files/text_encoders/umt5_xxl_fp16.safetensors", 11.4),
    _published(
        "t5", REPACKAGED, "split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", 6.74
    ),
)

ARCHITECTURE = Architecture(
    name="wan",
    title="Wan2.1",
    components=(DIT, VAE, T5),
    tasks=TASKS,
    variants=VARIANTS,
    runtime=Lazy("musubi.architectures.wan.runtime:WanRuntime"),
    suffix="wan",
    geometry=Geometry(channels=16, stride=(4, 8, 8), frame_rate=16.0),
    options=OPTIONS,
    publications=PUBLICATIONS,
    modelspec=("wan2.1", "https://github.com/Wan-Video/Wan2.1"),
    network_modules=("networks.lora_wan",),
)
