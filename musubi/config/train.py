"""The options of `musubi train`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from typing_extensions import Self

from musubi.config.losses import check_losses
from musubi.config.memory import RoomOptions, TrainMemoryOptions, check_full
from musubi.config.optimization import (
    LoraOptions,
    OptimizerOptions,
    ScheduleOptions,
    TimestepOptions,
)
from musubi.config.options import Options, Retired, option
from musubi.config.saving import (
    HubOptions,
    LoggingOptions,
    MetadataOptions,
    PreviewOptions,
    SavingOptions,
)
from musubi.errors import ConfigError
from musubi.untrusted import name_fault

_TRAINING = "Training"
_ATTENTION = "Attention"
_MODELS = "Models"
BACKENDS = {
    "sdpa": "sdpa",
    "flash_attn": "flash2",
    "xformers": "xformers",
    "flash3": "flash3",
}


class LengthOptions(Options):
    """The run: what it is trained on, for how long, and how a step is made."""

    dataset_config: str | None = option(
        None, "The dataset file, TOML or JSON.", group=_TRAINING, metavar="PATH"
    )
    task: str | None = option(
        None,
        "The task or published variant; the architecture's first when not given.",
        group=_TRAINING,
    )
    max_train_steps: int = option(
        1600, "Number of optimizer steps.", group=_TRAINING, ge=1, le=1_000_000_000
    )
    max_train_epochs: int | None = option(
        None, "Number of epochs; used instead of --max_train_steps.", group=_TRAINING, ge=1
    )
    gradient_accumulation_steps: int = option(
        1, "Batches per optimizer step.", group=_TRAINING, ge=1
    )
    seed: int | None = option(
        None, "Seed; a random one when not given.", group=_TRAINING, ge=0, le=2**63 - 1
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Precision of autocast; the setting of accelerate when not given.", group=_TRAINING
    )
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory.", group=_TRAINING
    )
    max_data_loader_n_workers: int = option(
        8, "Threads that read records ahead, at most one for each core.", group=_TRAINING, ge=0
    )
    ddp_timeout: int | None = option(
        None,
        "Minutes that processes wait for each other. When not given: a day if previews are made, "
        "else accelerate's default of 10 to 30.",
        group=_TRAINING,
        ge=1,
    )


class AttentionOptions(Options):
    """The attention back end: one of the flags, sdpa when none is given."""

    sdpa: bool = option(False, "PyTorch's own attention, the default.", group=_ATTENTION)
    flash_attn: bool = option(False, "FlashAttention 2.", group=_ATTENTION)
    flash3: bool = option(False, "FlashAttention 3.", group=_ATTENTION)
    xformers: bool = option(False, "xformers.", group=_ATTENTION)
    sage_attn: bool = option(
        False, "SageAttention cannot train; this option is refused.", group=_ATTENTION
    )
    split_attn: bool = option(False, "Compute attention for one item at a time.", group=_ATTENTION)

    @property
    def attention(self) -> str:
        """The back end's name in `musubi.nn.attention`."""
        return next((name for flag, name in BACKENDS.items() if getattr(self, flag)), "sdpa")


class DtypeOptions(Options):
    """Dtypes of the networks."""

    dit_dtype: str | None = option(
        None,
        "Dtype of the DiT's weights; the file's own when not given, float32 with --full.",
        group=_MODELS,
    )
    vae_dtype: str | None = option(
        None, "Dtype of the VAE in previews; its own default when not given.", group=_MODELS
    )
    text_encoder_dtype: str | None = option(
        None, "Dtype of the text encoders in previews; their own when not given.", group=_MODELS
    )
    image_encoder_dtype: str | None = option(
        None, "Dtype of the image encoder in previews; its own when not given.", group=_MODELS
    )


class TrainConfig(
    HubOptions,
    LoggingOptions,
    PreviewOptions,
    MetadataOptions,
    SavingOptions,
    TimestepOptions,
    ScheduleOptions,
    OptimizerOptions,
    LoraOptions,
    RoomOptions,
    TrainMemoryOptions,
    DtypeOptions,
    AttentionOptions,
    LengthOptions,
):
    """Everything `musubi train` takes, beside the architecture's own."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_attention(self)
        _check_lora(self)
        _check_names(self)
        _check_rates(self)
        check_losses(self)
        low, high = self.min_timestep or 0, 1000 if self.max_timestep is None else self.max_timestep
        if low >= high:
            raise ConfigError(
                f"--min_timestep {low} is not below --max_timestep {high}.",
                fix="Give noise levels from 0 (clean) to 1000 (noise), the lower one first.",
            )
        if self.optimizer_offload and self.mixed_precision == "fp16":
            raise ConfigError(
                "--optimizer_offload cannot go with --mixed_precision fp16: its scaler works on the "
                "device.",
                fix="Use --mixed_precision bf16.",
            )
        check_keeping(self)
        check_find_lr(self)
        wants = [n for n in ("sample_every_n_steps", "sample_every_n_epochs") if getattr(self, n)]
        wants += ["sample_at_first"] if self.sample_at_first else []
        if wants and self.sample_prompts is None:
            raise ConfigError(
                f"--{wants[0]} was given, but no prompts.", fix="Give --sample_prompts FILE."
            )
        asks = [
            n for n in ("validate_every_n_steps", "validate_every_n_epochs") if getattr(self, n)
        ]
        if asks and not self.validation_split:
            raise ConfigError(
                f"--{asks[0]} was given, but no items are held back.",
                fix="Give --validation_split 0.1 (a tenth of the items), or a number of items.",
            )
        return self

    @property
    def learning_rate_or_default(self) -> float:
        """The rate given, else 1e-4 for LoRA and 1e-5 for the whole network; see docs/optimizers.md."""
        if self.learning_rate is not None:
            return self.learning_rate
        kind = self.optimizer_type.lower().rpartition(".")[2]
        if kind.startswith("prodigy"):
            return 1.0
        return (1e-5 if self.full else 1e-4) / (3 if kind.startswith("lion") else 1)


def check_keeping(config: TrainConfig) -> None:
    """Refuse options about what is kept that another one lacks or contradicts.

    Raises:
        ConfigError: Naming both.
    """
    if config.stochastic_rounding and config.mixed_precision == "fp16":
        raise ConfigError(
            "--stochastic_rounding is for weights in bfloat16, and --mixed_precision is fp16.",
            fix="Use --mixed_precision bf16.",
        )
    if not config.ema_previews and config.ema_decay is None:
        raise ConfigError(
            "--no_ema_previews was given without an average.", fix="Give --ema_decay 0.999 too."
        )
    if any(epoch < 1 for epoch in config.keep_epochs or ()):
        raise ConfigError(
            f"--keep_epochs names epoch {min(config.keep_epochs or ())}.",
            fix="Epochs are counted from 1.",
        )
    for name in ("save_best", "early_stop"):
        if getattr(config, name) is not None and not config.validation_split:
            raise ConfigError(
                f"--{name} goes by the loss on items held back, and none are.",
                fix="Give --validation_split 0.1 (a tenth of the items), or a number of items.",
            )


def check_find_lr(config: TrainConfig) -> None:
    """Refuse what a sweep of learning rates cannot go with.

    Raises:
        ConfigError: Naming it.
    """
    if not config.find_lr:
        return
    for name in ("resume", "optimizer_offload"):
        if getattr(config, name):
            raise ConfigError(
                f"--find_lr starts each rate with a new optimizer, and --{name} was given.",
                fix=f"Leave out --{name} while a rate is looked for.",
            )
    if config.optimizer_type.lower().rpartition(".")[2].startswith("prodigy"):
        raise ConfigError(
            f"--find_lr has nothing to find: --optimizer_type {config.optimizer_type} chooses its own rate.",
            fix="Train without --find_lr, or use another optimizer, such as adamw.",
        )


def _check_attention(config: TrainConfig) -> None:
    if config.sage_attn:
        raise ConfigError(
            "--sage_attn cannot train: SageAttention has no backward pass.",
            fix="Use --sdpa, --flash_attn, --flash3 or --xformers.",
        )
    chosen = [flag for flag in BACKENDS if getattr(config, flag)]
    if len(chosen) > 1:
        raise ConfigError(
            f"--{chosen[0]} and --{chosen[1]} were both given.", fix="Give one attention back end."
        )


def _check_lora(config: TrainConfig) -> None:
    if config.dim_from_weights and config.network_weights is None:
        raise ConfigError(
            "--dim_from_weights was given without --network_weights.",
            fix="Give the LoRA whose rank and alpha are to be taken.",
        )
    if config.dim_from_weights and config.network_dim is not None:
        raise ConfigError(
            f"--network_dim {config.network_dim} and --dim_from_weights contradict each other.",
            fix="Give one of them.",
        )
    given, extra = len(config.base_weights or ()), len(config.base_weights_multiplier or ())
    if extra > given:
        raise ConfigError(
            f"--base_weights_multiplier has {extra} values for {given} files of --base_weights.",
            fix="Give at most one multiplier for each file.",
        )
    if config.full:
        names = ("network_dim", "network_dropout", "network_args", "network_weights")
        more = ["network_type", "network_reg_dims"]
        more += ["rank_stabilized"] if config.rank_stabilized else []
        more += ["network_init"] if config.network_init != "default" else []
        check_full(config, *names, *more, "scale_weight_norms")


def _check_rates(config: TrainConfig) -> None:
    """Refuse two learning rates for an optimizer that finds one for all, and fails at its first step."""
    kind = config.optimizer_type.lower().rpartition(".")[2]
    plus = any(pair.startswith("loraplus_lr_ratio") for pair in config.network_args or ())
    if plus and (kind == "prodigy" or kind.startswith("dadapt")):
        raise ConfigError(
            f"--optimizer_type {config.optimizer_type} finds one learning rate for all, and "
            "--network_args loraplus_lr_ratio asks for two.",
            fix="Leave out loraplus_lr_ratio, or use another optimizer, such as adamw.",
        )


def _check_names(config: TrainConfig) -> None:
    name = config.output_name
    fault = None if name is None else name_fault(name)
    if fault is not None:
        raise ConfigError(
            f"--output_name {name!r} cannot be part of a file name: {fault}.",
            fix="Give a plain name, and folders with --output_dir.",
        )
    if config.resume_from_huggingface and config.resume in (None, "auto"):
        raise ConfigError(
            "--resume_from_huggingface was given without a place.",
            fix="Give --resume user/repo/path.",
        )
    if config.save_state_to_huggingface and not (
        config.huggingface_repo_id and (config.save_state or config.save_state_on_train_end)
    ):
        raise ConfigError(
            "--save_state_to_huggingface needs states and a repository.",
            fix="Give --save_state and --huggingface_repo_id OWNER/NAME too.",
        )


RETIRED: tuple[Retired, ...] = (
    Retired("persistent_data_loader_workers", "the threads that read records always stay.", 0),
    Retired("ddp_gradient_as_bucket_view", "gradients are averaged without a wrapper.", 0),
    Retired("ddp_static_graph", "gradients are averaged without a wrapper.", 0),
    Retired(
        "img_in_txt_in_offloading", "the embedders stay on the device: they are a small part.", 0
    ),
    Retired("dit_in_channels", "sizes are read from the checkpoint."),
    Retired("guidance_scale", "this architecture is not told a guidance scale in training."),
)
