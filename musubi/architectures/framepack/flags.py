"""The options that FramePack adds to commands. Plain data: no torch in this file."""

from musubi.plugin import Option
from musubi.plugin.option import Command

_CACHE: tuple[Command, ...] = ("cache latents",)
_GENERATE: tuple[Command, ...] = ("generate",)
_PREVIEWS: tuple[Command, ...] = ("train", "generate")
_ALL: tuple[Command, ...] = ("cache latents", "train", "generate")

_VAE = (
    Option(
        name="vae_tiling",
        type=bool,
        default=False,
        help="Always so, whatever the value: the VAE of this architecture works in overlapping spatial tiles.",
        commands=_ALL,
    ),
    Option(
        name="vae_spatial_tile_sample_min_size",
        type=int,
        help="Side of a VAE tile in pixels, a multiple of 32; 256 when not given.",
        commands=_ALL,
        saves=128,
        affects_cache=True,
    ),
    Option(
        name="vae_temporal_tile_sample_min_size",
        type=int,
        help="Frames of a temporal VAE tile, a multiple of 16; all at once when not given.",
        commands=_ALL,
        saves=64,
        affects_cache=True,
    ),
    Option(
        name="vae_chunk_size",
        type=int,
        help=(
            "How many columns the VAE's convolutions compute at once: fewer need less memory, "
            "with the same result."
        ),
        commands=_ALL,
        saves=32,
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
)

_SECTIONS = (
    Option(
        name="f1",
        type=bool,
        default=False,
        help=(
            "Make the sections in the order of time, for FramePack-F1. Without it, the last "
            "section is made first. In training, for previews only."
        ),
        commands=_ALL,
        needs="sample_prompts",
        affects_cache=True,
    ),
    Option(
        name="latent_window_size",
        type=int,
        help=(
            "Latent frames of a section; 9 when not given, as the model was trained. In "
            "training, for previews only."
        ),
        commands=_ALL,
        needs="sample_prompts",
        affects_cache=True,
        written=True,
    ),
    Option(
        name="video_seconds",
        type=float,
        help="Length of the video in seconds, at 30 frames a second whatever --fps says, rounded to "
        "whole sections; 5 when not given.",
        commands=_GENERATE,
        needs="no video_sections",
        letter="f",
        preview_letter="",
        written=True,
    ),
    Option(
        name="video_sections",
        type=int,
        help="Length of the video in sections; used instead of --video_seconds.",
        commands=_GENERATE,
        letter="vs",
        preview_letter="",
    ),
    Option(
        name="latent_paddings",
        type=str,
        help=(
            "How many sections are between each section and the start image, beginning with the "
            "last section in time: 3,2,1,0. Sections without a number have their usual one."
        ),
        commands=_GENERATE,
    ),
    Option(
        name="bulk_decode",
        type=bool,
        default=False,
        help=(
            "Decode the whole video at once instead of each section: more memory, no blending "
            "between sections."
        ),
        commands=_PREVIEWS,
    ),
)

_ONE_FRAME = (
    Option(
        name="one_frame",
        type=bool,
        default=False,
        help="Train single frames, from control images.",
        commands=("cache latents", "train"),
        task={"i2v": "one_frame"},
    ),
    Option(
        name="one_frame_no_2x",
        type=bool,
        default=False,
        help="With --one_frame: leave out the empty history frames at half resolution (2x).",
        commands=_CACHE,
        needs="one_frame",
        affects_cache=True,
    ),
    Option(
        name="one_frame_no_4x",
        type=bool,
        default=False,
        help="With --one_frame: leave out the empty history frames at quarter resolution (4x).",
        commands=_CACHE,
        needs="one_frame",
        affects_cache=True,
    ),
    Option(
        name="one_frame_inference",
        type=str,
        help=(
            "Make a single frame. The value is `default`, or settings such as "
            "no_2x,no_4x,no_post,target_index=1,control_index=0;10."
        ),
        commands=_GENERATE,
        letter="of",
        aliases=("one_frame",),
        task={"i2v": "one_frame"},
    ),
    Option(
        name="one_frame_auto_resize",
        type=bool,
        default=False,
        help=(
            "With --one_frame_inference: use the proportions of the first control image, at the "
            "area of --video_size."
        ),
        commands=_GENERATE,
        needs="one_frame_inference",
    ),
)

_SAMPLING = (
    Option(
        name="custom_system_prompt",
        type=str,
        help="Instruction for the language model, instead of the one to describe the video.",
        commands=_GENERATE,
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
        help="Value of the embedded guidance, an input of the network; 10 when not given.",
        commands=_GENERATE,
        preview_letter="g",
        written=True,
    ),
    Option(
        name="guidance_rescale",
        type=float,
        default=0.0,
        help=(
            "With classifier-free guidance: how far to rescale the result to the standard "
            "deviation of the conditional prediction, 0 to 1."
        ),
        commands=_GENERATE,
        needs="guidance_scale",
        written=True,
    ),
    Option(
        name="rope_scaling_factor",
        type=float,
        default=0.5,
        help="Factor for the positions in height and width at high noise.",
        commands=_GENERATE,
        needs="rope_scaling_timestep_threshold",
    ),
    Option(
        name="rope_scaling_timestep_threshold",
        type=int,
        help="Scale positions from this timestep up (at most 1000); never when not given.",
        commands=_GENERATE,
    ),
)

OPTIONS = (*_VAE, *_SECTIONS, *_ONE_FRAME, *_SAMPLING)

DATASET_OPTIONS = (
    Option(
        name="fp_latent_window_size",
        type=int,
        help="Latent frames of a section; used instead of --latent_window_size.",
        commands=_CACHE,
    ),
    Option(
        name="fp_1f_clean_indices",
        type=list[int],
        help="With --one_frame: frame index of each control image, such as [0, 10]; [0] when not given.",
        commands=_CACHE,
    ),
    Option(
        name="fp_1f_target_index",
        type=int,
        help="With --one_frame: frame index of the image to learn; the window size when not given.",
        commands=_CACHE,
    ),
    Option(
        name="fp_1f_no_post",
        type=bool,
        default=False,
        help="With --one_frame: leave out the empty frame after the window.",
        commands=_CACHE,
    ),
)
