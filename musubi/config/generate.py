"""The options of `musubi generate`."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import model_validator
from typing_extensions import Self

from musubi.config.memory import GenerateMemoryOptions, RoomOptions
from musubi.config.options import Options, Retired, option
from musubi.errors import ConfigError, counted

Solver = Literal["unipc", "dpm++", "vanilla", "lcm"]
OutputType = Literal["video", "images", "latent", "both", "latent_images"]
AttentionMode = Literal[
    "torch", "sdpa", "flash", "flash2", "flash3", "xformers", "sageattn", "sage"
]
CfgSkipMode = Literal["early", "late", "middle", "early_late", "alternate", "none"]
LoraMode = Literal["merge", "attach"]

_PROMPT = "Prompt"
_VIDEO = "Video"
_SAMPLING = "Sampling"
_LORA = "LoRA"
_OUTPUT = "Output"
_MACHINE = "Models and machine"


class PromptOptions(Options):
    """What to make."""

    prompt: str | None = option(None, "The prompt: what the video shows.", group=_PROMPT)
    negative_prompt: str | None = option(
        None, "The negative prompt: what to avoid. When empty, the task's default.", group=_PROMPT
    )
    from_file: str | None = option(
        None,
        "A file of prompts: one for each line, with inline options (--w --h --f --d --s --g --fs "
        "--n), or TOML or JSON.",
        group=_PROMPT,
        metavar="PATH",
    )
    interactive: bool = option(False, "Ask for one prompt after another.", group=_PROMPT)
    latent_path: list[str] | None = option(
        None, "Decode these latent files instead of generating.", group=_PROMPT, metavar="PATH"
    )


class VideoOptions(Options):
    """Its size and length."""

    task: str | None = option(
        None,
        "The task or published variant; found from the checkpoint when not given.",
        group=_VIDEO,
    )
    video_size: tuple[int, int] | None = option(
        None, "Height and width in pixels; 256 256 for most tasks.", group=_VIDEO, metavar="H W"
    )
    size: str | None = option(None, "Width x height, such as 832x480.", group=_VIDEO, metavar="WxH")
    video_length: int | None = option(
        None, "Number of frames; the task's default when not given.", group=_VIDEO, ge=1, le=100_000
    )
    fps: float | None = option(
        None,
        "Frames per second of the video file; the model's frame rate when not given.",
        group=_VIDEO,
        ge=0.001,
        le=1000,
    )
    trim_tail_frames: int = option(0, "How many frames to cut from the end.", group=_VIDEO, ge=0)


class SamplingOptions(Options):
    """How it is sampled; the task's defaults where nothing is given."""

    infer_steps: int | None = option(None, "Denoising steps.", group=_SAMPLING, ge=1, le=10_000)
    sample_solver: Solver | None = option(None, "The solver.", group=_SAMPLING)
    flow_shift: float | None = option(
        None,
        "Shift of the noise levels; a larger shift spends more steps at high noise.",
        group=_SAMPLING,
        ge=1e-6,
        le=1e6,
    )
    guidance_scale: float | None = option(
        None,
        "Scale of classifier-free guidance. With 1, the network is called once per step, and the "
        "negative prompt is not used.",
        group=_SAMPLING,
        ge=-1e6,
        le=1e6,
    )
    seed: int | None = option(
        None,
        "Seed; a random one when not given, or -1.",
        group=_SAMPLING,
        ge=-1,
        le=2**63 - 1,
    )
    num_videos: int = option(
        1,
        "How many videos to make of each prompt; the seed rises by 1 from video to video.",
        group=_SAMPLING,
        ge=1,
        le=100_000,
    )
    cpu_noise: bool = option(
        False, "Draw noise on the CPU: the same on every device.", group=_SAMPLING
    )
    cfg_skip_mode: CfgSkipMode = option(
        "none",
        "Which part of the steps runs without guidance; needs --cfg_apply_ratio.",
        group=_SAMPLING,
    )
    cfg_apply_ratio: float | None = option(
        None,
        "Share of the steps with guidance, 0 to 1; needs --cfg_skip_mode.",
        group=_SAMPLING,
        ge=0,
        le=1,
    )

    magcache_mag_ratios: str | None = option(
        None,
        "MagCache: skip the network's blocks at steps where their output hardly changes. The "
        "value is 0 for the model's built-in ratios, or the list that --magcache_calibration "
        "prints.",
        group=_SAMPLING,
    )
    magcache_retention_ratio: float = option(
        0.2,
        "MagCache: share of the steps at the beginning that are never skipped.",
        group=_SAMPLING,
        ge=0,
        le=1,
    )
    magcache_threshold: float = option(
        0.24,
        "MagCache: how much error may add up before a step is run in full.",
        group=_SAMPLING,
        ge=0,
    )
    magcache_k: int = option(
        6, "MagCache: how many steps in a row may be skipped.", group=_SAMPLING, ge=0
    )
    magcache_calibration: bool = option(
        False, "MagCache: run every step in full, and print the measured ratios.", group=_SAMPLING
    )


class LoraFileOptions(Options):
    """LoRA files to generate with."""

    lora_weight: list[str] | None = option(None, "LoRA files.", group=_LORA, metavar="PATH")
    lora_multiplier: list[float] | None = option(
        None, "Strength of each LoRA, in the same order; missing ones are 1.0.", group=_LORA
    )
    include_patterns: list[str] | None = option(
        None, "For each LoRA, a pattern of the modules to use.", group=_LORA, metavar="REGEX"
    )
    exclude_patterns: list[str] | None = option(
        None, "For each LoRA, a pattern of the modules to leave out.", group=_LORA, metavar="REGEX"
    )
    lora_block_weights: list[str] | None = option(
        None,
        "Strengths by block, for each LoRA: STACK.N=VALUE, STACK.N-M=VALUE or STACK=VALUE, "
        "separated by commas, or one number for each block.",
        group=_LORA,
        metavar="WEIGHTS",
    )
    lora_mode: LoraMode = option(
        "merge",
        "merge: merge LoRAs into the weights while they load. attach: compute them beside the "
        "weights, which is slower but exact.",
        group=_LORA,
    )
    save_merged_model: str | None = option(
        None,
        "Only write the DiT with the LoRAs merged to this file; generate nothing.",
        group=_LORA,
        metavar="PATH",
    )


class OutputOptions(Options):
    """What is written, and where."""

    save_path: str | None = option(None, "Folder for the results.", group=_OUTPUT, metavar="DIR")
    output_type: OutputType = option(
        "video",
        "What to write. both: video and latents; latent_images: images and latents.",
        group=_OUTPUT,
    )
    continue_video: bool = option(
        False,
        "Continue an interrupted run of the same command: videos and sections that are already "
        "in --save_path are not made again.",
        group=_OUTPUT,
        aliases=("continue",),
    )
    crf: float | None = option(
        None,
        "Quality of videos, 0 to 51: a lower number gives better quality and a larger file. 16 "
        "when not given.",
        group=_OUTPUT,
        ge=0,
        le=51,
    )
    bit_depth: int = option(
        8,
        "Bits per colour in videos; fewer players can show 10.",
        group=_OUTPUT,
        metavar="8|10",
    )
    lossless: bool = option(
        False, "Write lossless videos (H.264 in RGB); few browsers can play them.", group=_OUTPUT
    )
    no_metadata: bool = option(
        False, "Do not write the prompt, the seed or other settings into the files.", group=_OUTPUT
    )


class MachineOptions(Options):
    """Devices, dtypes, attention."""

    device: str | None = option(
        None, "cuda, cuda:1, cpu …; the best when not given.", group=_MACHINE
    )
    dit_dtype: str | None = option(
        None, "Dtype of the DiT's weights; the file's own when not given.", group=_MACHINE
    )
    vae_dtype: str | None = option(None, "Dtype of the VAE.", group=_MACHINE)
    image_encoder_dtype: str | None = option(None, "Dtype of the image encoder.", group=_MACHINE)
    text_encoder_dtype: str | None = option(None, "Dtype of the text encoders.", group=_MACHINE)
    attn_mode: AttentionMode = option("torch", "Implementation of attention.", group=_MACHINE)
    split_attn: bool = option(False, "Compute attention for one item at a time.", group=_MACHINE)


class GenerateConfig(
    RoomOptions,
    GenerateMemoryOptions,
    MachineOptions,
    OutputOptions,
    LoraFileOptions,
    SamplingOptions,
    VideoOptions,
    PromptOptions,
):
    """Everything `musubi generate` takes, beside the architecture's own."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_lora(self)
        if self.save_merged_model is None:
            _check_request(self)
        _check_sampling(self)
        _check_video(self)
        return self

    @property
    def width_height(self) -> tuple[int, int] | None:
        """Width and height, from `--size` or `--video_size`; None when neither was given."""
        if self.size is not None:
            width, height = self.size.lower().split("x")
            return int(width), int(height)
        if self.video_size is not None:
            height, width = self.video_size
            return width, height
        return None


def _check_request(config: GenerateConfig) -> None:
    names = ("prompt", "from_file", "interactive", "latent_path")
    given = [name for name in names if getattr(config, name)]
    if given == ["prompt", "latent_path"]:  # older tools demanded a prompt; the latents are there
        given.remove("prompt")
    if not given:
        raise ConfigError(
            "Nothing says what to make.",
            fix="Give --prompt, --from_file, --interactive or --latent_path.",
        )
    if len(given) > 1:
        *others, last = (f"--{name}" for name in given)
        raise ConfigError(
            f"{', '.join(others)} and {last} were given together.", fix="Give one of them."
        )
    if config.latent_path and config.output_type not in ("video", "images"):
        raise ConfigError(
            f"--latent_path has its latents already: --output_type {config.output_type} means nothing.",
            fix="Give --output_type video or images.",
        )
    if config.save_path is None:
        raise ConfigError("Nothing says where to save.", fix="Give --save_path DIR.")


def _check_sampling(config: GenerateConfig) -> None:
    if config.size is not None and config.video_size is not None:
        raise ConfigError("--size and --video_size were both given.", fix="Give one of them.")
    if config.size is not None and not re.fullmatch(r"[1-9]\d*[xX][1-9]\d*", config.size):
        raise ConfigError(f"--size {config.size!r} is not a size.", fix="Write 832x480, say.")
    if (config.cfg_skip_mode == "none") != (config.cfg_apply_ratio is None):
        raise ConfigError(
            "--cfg_skip_mode and --cfg_apply_ratio mean nothing without each other.",
            fix="Give both or neither.",
        )


def _check_video(config: GenerateConfig) -> None:
    given = {"crf": config.crf is not None, "bit_depth": config.bit_depth != 8}
    given["lossless"] = config.lossless
    said = [f"--{name}" for name, there in given.items() if there]
    if said and config.output_type not in ("video", "both"):
        raise ConfigError(
            f"{said[0]} is about videos, and --output_type {config.output_type} writes none.",
            fix=f"Leave out {said[0]}, or give --output_type video or both.",
        )
    if config.bit_depth not in (8, 10):
        raise ConfigError(
            f"--bit_depth {config.bit_depth} is not written.", fix="Give --bit_depth 8 or 10."
        )
    if config.lossless and len(said) > 1:
        raise ConfigError(
            f"--lossless keeps every pixel as it is, so {said[0]} would change nothing.",
            fix=f"Give --lossless or {said[0]}, not both.",
        )


def _check_lora(config: GenerateConfig) -> None:
    files = len(config.lora_weight or ())
    for name in ("lora_multiplier", "include_patterns", "exclude_patterns", "lora_block_weights"):
        count = len(getattr(config, name) or ())
        if count > files:
            raise ConfigError(
                f"--{name} has {counted(count, 'value')} for {counted(files, 'LoRA file')} of --lora_weight.",
                fix="Give at most one for each file.",
            )
    # The files of further denoisers have options of their own, which the architecture adds.
    named = [n for n in type(config).model_fields if n.startswith("lora_weight")]
    if config.save_merged_model is not None and not any(getattr(config, n) for n in named):
        raise ConfigError(
            "--save_merged_model has nothing to merge.", fix="Give --lora_weight FILE."
        )


RETIRED: tuple[Retired, ...] = (
    Retired("lycoris", "the form of a LoRA file is recognised by its content.", 0),
    Retired("video_path", "this architecture starts from no video; it never read this flag."),
    Retired(
        "img_in_txt_in_offloading", "the embedders stay on the device: they are a small part.", 0
    ),
    Retired("dit_in_channels", "sizes are read from the checkpoint."),
    Retired("split_uncond", "the network is always called twice under guidance.", 0),
    Retired("ckpt_dir", "each network has its own flag, such as --dit and --vae."),
)
