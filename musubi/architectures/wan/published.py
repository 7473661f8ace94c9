"""The files of Wan that people download. Plain data: no torch in this file."""

from musubi.plugin import Publication

REPACKAGED = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"
REPACKAGED_22 = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged"


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
    *(
        _published("dit", REPACKAGED, f"{_DIFFUSION}/{file}.safetensors", size, *variants)
        for file, size, variants in (
            ("wan2.1_i2v_480p_14B_bf16", 32.8, ("i2v-14B",)),
            ("wan2.1_i2v_480p_14B_fp16", 32.8, ("i2v-14B",)),
            ("wan2.1_i2v_720p_14B_bf16", 32.8, ("i2v-14B",)),
            ("wan2.1_i2v_720p_14B_fp16", 32.8, ("i2v-14B",)),
            ("wan2.1_i2v_480p_14B_fp8_e4m3fn", 16.4, ("i2v-14B",)),
            ("wan2.1_i2v_480p_14B_fp8_scaled", 16.4, ("i2v-14B",)),
            ("wan2.1_i2v_720p_14B_fp8_e4m3fn", 16.4, ("i2v-14B",)),
            ("wan2.1_flf2v_720p_14B_fp16", 32.8, ("flf2v-14B",)),
            ("wan2.1_flf2v_720p_14B_fp8_e4m3fn", 16.4, ("flf2v-14B",)),
            ("wan2.1_fun_control_1.3B_bf16", 3.13, ("t2v-1.3B-FC", "i2v-1.3B-FC")),
            ("wan2.1_vace_1.3B_fp16", 4.31, ("vace-1.3B",)),
            ("wan2.1_vace_14B_fp16", 34.7, ("vace-14B",)),
        )
    ),
    *(
        _published(
            "dit", f"alibaba-pai/{repo}", "diffusion_pytorch_model.safetensors", size, *variants
        )
        for repo, size, variants in (
            ("Wan2.1-Fun-1.3B-Control", 3.13, ("t2v-1.3B-FC", "i2v-1.3B-FC")),
            ("Wan2.1-Fun-14B-Control", 32.8, ("t2v-14B-FC", "i2v-14B-FC")),
            ("Wan2.1-Fun-V1.1-1.3B-Control", 3.13, ("i2v-1.3B-FC-1.1",)),
            ("Wan2.1-Fun-V1.1-14B-Control", 32.8, ("i2v-14B-FC-1.1",)),
        )
    ),
    *(
        _published(component, REPACKAGED_22, f"{_DIFFUSION}/{file}.safetensors", size, variant)
        for component, file, size, variant in (
            ("dit", "wan2.2_t2v_low_noise_14B_fp16", 28.6, "t2v-A14B"),
            ("dit_high_noise", "wan2.2_t2v_high_noise_14B_fp16", 28.6, "t2v-A14B"),
            ("dit", "wan2.2_i2v_low_noise_14B_fp16", 28.6, "i2v-A14B"),
            ("dit_high_noise", "wan2.2_i2v_high_noise_14B_fp16", 28.6, "i2v-A14B"),
            ("dit", "wan2.2_ti2v_5B_fp16", 10.0, "ti2v-5B"),
        )
    ),
    _published("vae22", "Wan-AI/Wan2.2-TI2V-5B", "Wan2.2_VAE.pth", 2.82, "ti2v-5B"),
    _published(
        "clip",
        "Wan-AI/Wan2.1-I2V-14B-720P",
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        4.77,
    ),
    _published("vae22", REPACKAGED_22, "split_files/vae/wan2.2_vae.safetensors", 1.41, "ti2v-5B"),
    _published("clip", REPACKAGED, "split_files/clip_vision/clip_vision_h.safetensors", 1.26),
    _published("vae", "Wan-AI/Wan2.1-T2V-1.3B", "Wan2.1_VAE.pth", 0.51),
    _published("vae", REPACKAGED, "split_files/vae/wan_2.1_vae.safetensors", 0.25),
    _published("t5", "Wan-AI/Wan2.1-T2V-1.3B", "models_t5_umt5-xxl-enc-bf16.pth", 11.4),
    _published("t5", REPACKAGED, "split_files/text_encoders/umt5_xxl_fp16.safetensors", 11.4),
    _published(
        "t5", REPACKAGED, "split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", 6.74
    ),
)
