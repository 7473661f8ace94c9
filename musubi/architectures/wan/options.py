"""Options of Wan's own. Plain data: no torch in this file."""

from musubi.plugin import Option

_VAE = (
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
        needs="vae_tiling",
        affects_cache=True,
    ),
)

_SKIPPED_LAYERS = (
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
        help=(
            "Skip-layer guidance: a third call of the network (original), or in place of the "
            "unconditional call (uncond)."
        ),
        commands=("generate",),
    ),
    Option(
        name="slg_scale",
        type=float,
        default=3.0,
        help="Skip-layer guidance: strength in the mode `original`.",
        commands=("generate",),
        needs="slg_mode=original",
    ),
    Option(
        name="slg_start",
        type=float,
        default=0.0,
        help="Skip-layer guidance: where it begins, as a share of the steps (0 to 1).",
        commands=("generate",),
        needs="slg_layers",
    ),
    Option(
        name="slg_end",
        type=float,
        default=0.3,
        help="Skip-layer guidance: where it ends, as a share of the steps (0 to 1).",
        commands=("generate",),
        needs="slg_layers",
    ),
)

_TASKS = (
    Option(
        name="i2v",
        type=bool,
        default=False,
        help="Image to video with a model that needs no --clip: Wan2.2 A14B and TI2V 5B.",
        commands=("cache latents", "train"),
        task={"t2v": "i2v-2.2", "ti2v": "ti2v-image"},
    ),
    Option(
        name="one_frame",
        type=bool,
        default=False,
        help="Make one frame from control images; the frame has its own position in time.",
        commands=("cache latents", "train"),
        task={"i2v": "one_frame", "flf2v": "one_frame_flf2v"},
    ),
    Option(
        name="one_frame_inference",
        type=str,
        help=(
            "Make one frame from control images. The value gives positions in time: "
            "target_index=1,control_index=0; write ; between several control positions."
        ),
        commands=("generate",),
        letter="of",
        aliases=("one_frame",),
        task={"i2v": "one_frame", "flf2v": "one_frame_flf2v"},
    ),
)

_OTHERS = (
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
        name="timestep_boundary",
        type=float,
        help=(
            "Wan2.2's high-noise expert handles noise levels from this one up. When not given, "
            "0.875 for text to video and 0.9 for image to video."
        ),
        commands=("train", "generate"),
    ),
    Option(
        name="guidance_scale_high_noise",
        type=float,
        help="Guidance scale of Wan2.2's high-noise expert; the task's default when not given.",
        commands=("generate",),
    ),
    Option(
        name="control_scale",
        type=float,
        default=1.0,
        help="VACE: weight of the control blocks' output.",
        commands=("generate",),
    ),
)

OPTIONS = (*_VAE, *_SKIPPED_LAYERS, *_TASKS, *_OTHERS)

DATASET_OPTIONS = (
    Option(
        name="fp_1f_clean_indices",
        type=list[int],
        help="One frame: the position in time of each control image.",
        commands=("cache latents", "train"),
    ),
    Option(
        name="fp_1f_target_index",
        type=int,
        help="One frame: the position in time of the frame to learn.",
        commands=("cache latents", "train"),
    ),
)
