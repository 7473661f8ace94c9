"""The files of Wan that people download. Plain data: no torch in this file."""

from musubi.plugin import Publication

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
