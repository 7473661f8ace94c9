"""The options of training that decide what is learned: optimizer, schedule, noise levels, adapter."""

from __future__ import annotations

import ast
from typing import Any, Literal

from musubi.config.losses import LossOptions
from musubi.config.options import Options, option
from musubi.errors import ConfigError

TimestepSampling = Literal["sigma", "uniform", "sigmoid", "shift", "logsnr", "flux_shift"]
Weighting = Literal["logit_normal", "mode", "cosmap", "sigma_sqrt", "none"]

_OPTIMIZER = "Optimizer"
_SCHEDULE = "Learning rate schedule"
_TIMES = "Timesteps and loss"
_LORA = "LoRA"


class OptimizerOptions(Options):
    """The optimizer."""

    optimizer_type: str = option(
        "adamw",
        "adamw, adamw8bit, pagedadamw8bit, adamw4bit, adafactor, lion, lion8bit, came, muon, prodigy, "
        "prodigyplus (its schedule-free form), schedulefree (AdamWScheduleFree), any class of "
        "torch.optim, or a dotted path to a class.",
        group=_OPTIMIZER,
    )
    optimizer_args: list[str] | None = option(
        None,
        "Further arguments of the optimizer as key=value, values in Python's notation: "
        "weight_decay=0.01 betas=(0.9,0.99).",
        group=_OPTIMIZER,
        metavar="KEY=VALUE",
    )
    learning_rate: float | None = option(
        None,
        "Learning rate. When not given: 1e-4 for LoRA and 1e-5 for --full; a third of these for "
        "lion; 1 for prodigy and prodigyplus, which find their own rate and multiply it by this "
        "one.",
        group=_OPTIMIZER,
        gt=0,
    )
    find_lr: bool = option(
        False,
        "Do not train: try learning rates from a thirtieth to thirty times --learning_rate for a few "
        "steps each, and propose one.",
        group=_OPTIMIZER,
    )
    find_lr_steps: int = option(
        20, "Steps with each rate of --find_lr.", group=_OPTIMIZER, ge=1, le=1_000_000
    )
    max_grad_norm: float = option(
        1.0, "Clip gradients to this norm; 0 turns clipping off.", group=_OPTIMIZER, ge=0
    )
    stochastic_rounding: bool = option(
        False,
        "Stochastic rounding: round bfloat16 weights up or down at random after each step, so "
        "that small steps are not lost. For --full --dit_dtype bfloat16.",
        group=_OPTIMIZER,
    )
    ema_decay: float | None = option(
        None,
        "Keep an exponential moving average of the weights with this decay, such as 0.999; the "
        "names of its files end in _ema.",
        group=_OPTIMIZER,
        gt=0,
        lt=1,
    )
    ema_previews: bool = option(
        True,
        "With --ema_decay: use the average instead of the weights for previews and validation.",
        group=_OPTIMIZER,
    )


class ScheduleOptions(Options):
    """The learning rate over time."""

    lr_scheduler: str = option(
        "constant",
        "constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial, "
        "inverse_sqrt, cosine_with_min_lr, warmup_stable_decay, rex, piecewise_constant "
        "(with step_rules in --lr_scheduler_args), or adafactor:RATE.",
        group=_SCHEDULE,
    )
    lr_warmup_steps: int | float | str = option(
        0,
        "Warm-up: steps, a ratio of all steps below 1, or a percentage such as 5%.",
        group=_SCHEDULE,
    )
    lr_decay_steps: int | float | str = option(
        0,
        "Decay of warmup_stable_decay: steps, a ratio of all steps below 1, or a percentage.",
        group=_SCHEDULE,
    )
    lr_scheduler_num_cycles: int = option(
        1, "Cycles of cosine_with_restarts.", group=_SCHEDULE, ge=1
    )
    lr_scheduler_power: float = option(1.0, "Power of polynomial.", group=_SCHEDULE, gt=0)
    lr_scheduler_timescale: int | None = option(
        None,
        "Timescale of inverse_sqrt, in steps; the warm-up's length when not given.",
        group=_SCHEDULE,
    )
    lr_scheduler_min_lr_ratio: float | None = option(
        None,
        "Lowest rate of cosine_with_min_lr, warmup_stable_decay and rex, as a ratio of the "
        "learning rate.",
        group=_SCHEDULE,
        ge=0,
        le=1,
    )
    lr_scheduler_type: str | None = option(
        None,
        "A class of torch.optim.lr_scheduler or a dotted path, instead of --lr_scheduler.",
        group=_SCHEDULE,
    )
    lr_scheduler_args: list[str] | None = option(
        None,
        "Arguments of the scheduler as key=value, values in Python's notation.",
        group=_SCHEDULE,
        metavar="KEY=VALUE",
    )


class TimestepOptions(LossOptions):
    """Noise levels and the loss."""

    timestep_sampling: TimestepSampling = option(
        "sigma",
        "How noise levels are drawn: sigma (by --weighting_scheme), uniform, sigmoid, shift, logsnr, "
        "or flux_shift (a shift by resolution).",
        group=_TIMES,
    )
    discrete_flow_shift: float = option(
        1.0, "Shift k of t' = k t / (1 + (k - 1) t), for sigma and shift.", group=_TIMES, gt=0
    )
    sigmoid_scale: float = option(
        1.0,
        "Standard deviation of the normal variable in sigmoid, shift and flux_shift.",
        group=_TIMES,
        gt=0,
    )
    weighting_scheme: Weighting = option(
        "none",
        "logit_normal and mode shape the density of sigma sampling; cosmap and sigma_sqrt weight the loss.",
        group=_TIMES,
    )
    logit_mean: float = option(0.0, "Mean of logit_normal and logsnr.", group=_TIMES)
    logit_std: float = option(
        1.0, "Standard deviation of logit_normal and logsnr.", group=_TIMES, gt=0
    )
    mode_scale: float = option(1.29, "Scale of mode.", group=_TIMES)
    min_timestep: int | None = option(
        None, "Lowest timestep to train, 0 to 1000.", group=_TIMES, ge=0, le=1000
    )
    max_timestep: int | None = option(
        None, "Highest timestep to train, 0 to 1000.", group=_TIMES, ge=0, le=1000
    )
    preserve_distribution_shape: bool = option(
        False,
        "With --min_timestep and --max_timestep: keep the distribution and draw again outside "
        "these bounds, instead of squeezing it between them.",
        group=_TIMES,
    )
    show_timesteps: Literal["image", "console"] | None = option(
        None, "Show the distribution of noise levels, and do not train.", group=_TIMES
    )
    caption_dropout_rate: float = option(
        0.0,
        "Probability that an item is trained with an empty caption.",
        group=_TIMES,
        ge=0,
        le=1,
    )


class LoraOptions(Options):
    """What is trained."""

    full: bool = option(
        False,
        "Train the DiT itself instead of a LoRA. Its weights are float32 unless --dit_dtype says "
        "otherwise.",
        group=_LORA,
    )
    network_type: Literal["lora", "loha", "lokr", "dora", "oft", "full"] | None = option(
        None,
        "Kind of adapter. lora: two small matrices for each layer; loha: the element-wise "
        "product of two LoRAs; lokr: a Kronecker product; dora: a LoRA with magnitudes; oft: "
        "rotations of rows; full: a difference of the layer's size. lora when not given.",
        group=_LORA,
    )
    network_module: str | None = option(
        None,
        "Kind of adapter, as older tools name it: networks.lora…, networks.loha, networks.lokr, "
        "or lycoris.kohya with algo=… in --network_args.",
        group=_LORA,
        metavar="NAME",
    )
    network_dim: int | None = option(
        None,
        "Rank of the LoRA; 4 when not given. For oft, the size of a block.",
        group=_LORA,
        ge=1,
        le=1_000_000,
        metavar="RANK",
    )
    network_reg_dims: list[str] | None = option(
        None,
        "Another rank and alpha for layers whose whole name matches a pattern; the first match "
        "counts.",
        group=_LORA,
        metavar="PATTERN=RANK[:ALPHA]",
    )
    rank_stabilized: bool = option(
        False,
        "Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA), so that a LoRA of high "
        "rank is not too weak.",
        group=_LORA,
    )
    network_init: Literal["default", "pissa"] = option(
        "default",
        "How a LoRA is initialized. default: random numbers and zeros. pissa: the largest "
        "singular vectors of each weight. With both, the model is unchanged before the first "
        "step.",
        group=_LORA,
    )
    network_alpha: float = option(
        1.0,
        "Alpha: the LoRA is scaled by alpha / rank; 0 means alpha = rank.",
        group=_LORA,
        ge=0,
    )
    network_dropout: float | None = option(
        None, "Dropout between the two matrices.", group=_LORA, ge=0, lt=1
    )
    network_args: list[str] | None = option(
        None,
        "Further arguments as key=value: loraplus_lr_ratio, rank_dropout, module_dropout, "
        "include_patterns, exclude_patterns, groups, conv_dim, conv_alpha; and LyCORIS "
        "arguments: algo, factor, decompose_both, full_matrix, use_tucker, dora_wd, rs_lora, "
        "constraint, rescaled.",
        group=_LORA,
        metavar="KEY=VALUE",
    )
    network_weights: str | None = option(
        None,
        "A LoRA to start from; modules that are not in the file are initialized as usual.",
        group=_LORA,
        metavar="PATH",
    )
    dim_from_weights: bool = option(
        False,
        "Take rank, alpha and modules from --network_weights.",
        group=_LORA,
    )
    scale_weight_norms: float | None = option(
        None,
        "After each step, scale down every adapter whose weight change has a norm above this.",
        group=_LORA,
        gt=0,
    )
    base_weights: list[str] | None = option(
        None, "LoRA files to merge into the DiT before training.", group=_LORA, metavar="PATH"
    )
    base_weights_multiplier: list[float] | None = option(
        None, "Strengths of --base_weights, in the same order; missing ones are 1.0.", group=_LORA
    )
    lora_format: Literal["kohya", "comfy", "diffusion_model", "diffusers"] | None = option(
        None,
        "Names in the LoRA file: kohya (lora_unet_…, alpha kept); comfy, also called "
        "diffusion_model (lora_A/lora_B, alpha folded in); or the names of diffusers. When not "
        "given, the one of which ComfyUI and diffusers load the most.",
        group=_LORA,
    )


def literals(pairs: list[str] | None, flag: str) -> dict[str, Any]:
    """`key=value` arguments, values read as Python literals.

    Args:
        pairs: As given by the user.
        flag: The option they were given to, for the message.

    Raises:
        ConfigError: A pair without `=`, or a value that is no literal.
    """
    found: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"--{flag} was given {pair!r}, which has no '='.", fix="Write key=value."
            )
        try:
            found[key.strip()] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            raise ConfigError(
                f"--{flag} {key.strip()}: {text!r} is not a value in Python's notation.",
                fix="Write numbers bare, True or False, tuples as (0.9,0.99), and text in quotes.",
            ) from None
    return found
