"""The options that say what a step is measured by: the loss, its weights, and what is to be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from musubi.config.options import Options, option
from musubi.errors import ConfigError

if TYPE_CHECKING:
    from musubi.config.train import TrainConfig

LossType = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]

HUBER_C = 0.1
_LOSS = "Loss"


class LossOptions(Options):
    """The loss."""

    loss_type: LossType = option(
        "l2",
        "The loss function: l2 (squared error), l1, huber or smooth_l1 (pseudo-Huber: large "
        "single errors count less).",
        group=_LOSS,
    )
    huber_schedule: HuberSchedule | None = option(
        None,
        "How --huber_c depends on the noise level, for huber and smooth_l1: constant, "
        "exponential or snr (larger at low noise). constant when not given.",
        group=_LOSS,
    )
    huber_c: float | None = option(
        None,
        f"Errors above this value count less, for huber and smooth_l1; {HUBER_C} when not given.",
        group=_LOSS,
        gt=0,
    )
    huber_scale: float | None = option(
        None, "Factor for --huber_c at all noise levels; 1 when not given.", group=_LOSS, gt=0
    )
    min_snr_gamma: float | None = option(
        None,
        "Weight each item by min-SNR with this gamma, such as 5: min((1 - t)^2, gamma t^2) at noise level t.",
        group=_LOSS,
        gt=0,
    )

    unmasked_weight: float | None = option(
        None,
        "Weight of the loss outside the masks, 0 to 1; 0 when not given.",
        group=_LOSS,
        ge=0,
        le=1,
    )

    prior_loss_weight: float | None = option(
        None,
        "Weight of the loss for datasets with is_reg; 1 when not given.",
        group=_LOSS,
        gt=0,
    )
    prior_preservation: bool = option(
        False,
        "For datasets with is_reg: train towards the prediction of the model without the "
        "adapter, instead of towards the clip.",
        group=_LOSS,
    )
    diff_output_preservation: bool = option(
        False,
        "Keep the meaning of the class word: with the class word in place of the trigger word, "
        "the prediction is trained to stay the same as without the adapter. Each step takes two "
        "more forward passes.",
        group=_LOSS,
    )
    diff_output_preservation_multiplier: float | None = option(
        None, "Weight of --diff_output_preservation; 1 when not given.", group=_LOSS, gt=0
    )

    @property
    def huber(self) -> dict[str, float]:
        """`c` and `scale` of `musubi.flow.losses.huber_c`."""
        c, scale = self.huber_c, self.huber_scale
        return {"c": HUBER_C if c is None else c, "scale": 1.0 if scale is None else scale}


def check_losses(config: TrainConfig) -> None:
    """Refuse options of the loss that contradict each other.

    Raises:
        ConfigError: Naming both.
    """
    if config.loss_type not in ("huber", "smooth_l1"):
        for name in ("huber_schedule", "huber_c", "huber_scale"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"--{name} means nothing with --loss_type {config.loss_type}.",
                    fix="Give --loss_type huber or smooth_l1, or leave it out.",
                )
    multiplier = config.diff_output_preservation_multiplier
    if multiplier is not None and not config.diff_output_preservation:
        raise ConfigError(
            "--diff_output_preservation_multiplier means nothing without --diff_output_preservation.",
            fix="Give both, or leave it out.",
        )
    for name in ("prior_preservation", "diff_output_preservation"):
        if config.full and getattr(config, name):
            raise ConfigError(
                f"--{name} cannot go with --full: it asks the base without the adapter, and there is none.",
                fix="Train an adapter, such as --network_type lora, or leave it out.",
            )
    if config.min_snr_gamma is not None and config.weighting_scheme in ("cosmap", "sigma_sqrt"):
        raise ConfigError(
            f"--min_snr_gamma and --weighting_scheme {config.weighting_scheme} are two weights of one "
            "loss.",
            fix="Leave one of them out.",
        )
