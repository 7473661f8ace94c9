"""The options of `musubi lora merge`, `convert`, `ema`, `info` and `verify`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from musubi.config.options import Options, Retired, option
from musubi.errors import ConfigError

_LORA = "LoRA"


class LoraMergeConfig(Options):
    """`musubi lora merge`."""

    lora_weight: list[str] = option(..., "LoRA files, of any common form.", group=_LORA)
    lora_multiplier: list[float] | None = option(
        None, "Strength of each, in the same order; 1.0 where missing.", group=_LORA
    )
    include_patterns: list[str] | None = option(
        None,
        "For each LoRA, a pattern of the keys to use, found anywhere in the key.",
        group=_LORA,
        metavar="REGEX",
    )
    exclude_patterns: list[str] | None = option(
        None,
        "For each LoRA, a pattern of the keys to leave out.",
        group=_LORA,
        metavar="REGEX",
    )
    save_merged_model: str = option(
        ..., "The checkpoint to write, safetensors.", group="Output", metavar="PATH"
    )
    device: str | None = option(
        None, "Where to multiply: `cuda`, `cpu`; cuda when there is one.", group="Output"
    )

    @model_validator(mode="after")
    def _check(self) -> LoraMergeConfig:
        for name in ("lora_multiplier", "include_patterns", "exclude_patterns"):
            count = len(getattr(self, name) or ())
            if count > len(self.lora_weight):
                raise ConfigError(
                    f"--{name} has {count} values for {len(self.lora_weight)} files of --lora_weight.",
                    fix="Give one for each file, in the same order.",
                )
        return self


def _arch() -> Any:
    return option(
        None,
        "Architecture, when neither the file's metadata nor its names tell it.",
        group=_LORA,
        metavar="NAME",
    )


class LoraConvertConfig(Options):
    """`musubi lora convert`."""

    arch: str | None = _arch()
    input: str = option(..., "The LoRA file, of any common form.", group=_LORA, metavar="PATH")
    output: str = option(
        ..., "The file to write, safetensors; not the input.", group="Output", metavar="PATH"
    )
    target: Literal["kohya", "comfy", "diffusers", "other", "default"] = option(
        ...,
        "Names in the new file: kohya (lora_unet_…, with alpha), also called default; comfy "
        "(diffusion_model.…, alpha folded in), also called other; or those of diffusers.",
        group="Output",
    )
    dtype: str | None = option(
        None, "Of the new file, such as fp32; the input's when not given.", group="Output"
    )
    allow_lossy: bool = option(
        False,
        "Write the file although something of the input is left out: what this version does not know, "
        "and what the new form cannot say.",
        group="Output",
    )


class LoraEmaConfig(Options):
    """`musubi lora ema`."""

    files: list[str] = option(..., "LoRA files of one run.", group=_LORA, metavar="PATH")
    output_file: str = option(
        ..., "The file to write, safetensors.", group="Output", metavar="PATH"
    )
    no_sort: bool = option(
        False, "Keep the order given; by time of change, oldest first, when not.", group=_LORA
    )
    beta: float = option(
        0.95, "What each further file leaves of the average so far.", group="Average", ge=0, le=1
    )
    beta2: float | None = option(
        None,
        "The same for the last file; in between it changes evenly. As beta when not given.",
        group="Average",
        ge=0,
        le=1,
    )
    sigma_rel: float | None = option(
        None,
        "Width of a power-function average relative to the run, instead of beta: more than 0 and "
        "less than 0.2887.",
        group="Average",
    )

    @model_validator(mode="after")
    def _check(self) -> LoraEmaConfig:
        if len(self.files) < 2:
            raise ConfigError(
                "One file has no average.", fix="Give two or more LoRA files of one run."
            )
        if self.sigma_rel is None:
            return self
        if not 0 < self.sigma_rel < 12**-0.5:
            raise ConfigError(
                f"--sigma_rel is {self.sigma_rel}; no power function is that wide.",
                fix="Give a number greater than 0 and less than 1/sqrt(12) = 0.2887.",
            )
        if self.model_fields_set & {"beta", "beta2"}:
            raise ConfigError(
                "--sigma_rel and --beta are two ways to say the same.", fix="Give one of them."
            )
        return self


class LoraVerifyConfig(Options):
    """`musubi lora verify`."""

    files: list[str] = option(..., "LoRA files.", group=_LORA, metavar="PATH")
    arch: str | None = _arch()


class LoraInfoConfig(Options):
    """`musubi lora info`."""

    files: list[str] = option(..., "LoRA files.", group=_LORA, metavar="PATH")
    json_output: bool = option(
        False, "Say it as one JSON list, for programs.", group="Output", aliases=("json",)
    )


RETIRED: tuple[Retired, ...] = (Retired("dit_in_channels", "sizes are read from the checkpoint."),)
