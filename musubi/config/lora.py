"""The options of `musubi lora` and its commands."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from musubi.config.options import Options, Retired, option
from musubi.errors import ConfigError, counted

_LORA = "LoRA"


class LoraMergeConfig(Options):
    """`musubi lora merge`."""

    lora_weight: list[str] = option(
        ..., "LoRA files, of any common form.", group=_LORA, metavar="PATH"
    )
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
    lora_block_weights: list[str] | None = option(
        None,
        "For each LoRA, strengths by block: STACK.N=VALUE, STACK.N-M=VALUE or STACK=VALUE with commas "
        "between, or a number for each block.",
        group=_LORA,
        metavar="WEIGHTS",
    )
    save_merged_model: str = option(
        ..., "The checkpoint to write, safetensors.", group="Output", metavar="PATH"
    )
    save_precision: Literal["fp32", "bf16", "fp16", "fp8", "fp8_scaled"] | None = option(
        None,
        "How the checkpoint is stored; as the input when not given. fp8_scaled is the 8-bit form with "
        "scales that ComfyUI loads.",
        group="Output",
    )
    device: str | None = option(
        None, "Where to multiply: `cuda`, `cpu`; cuda when there is one.", group="Output"
    )

    @model_validator(mode="after")
    def _check(self) -> LoraMergeConfig:
        for name in (
            "lora_multiplier",
            "include_patterns",
            "exclude_patterns",
            "lora_block_weights",
        ):
            count = len(getattr(self, name) or ())
            if count > len(self.lora_weight):
                raise ConfigError(
                    f"--{name} has {counted(count, 'value')} for {counted(len(self.lora_weight), 'file')} of --lora_weight.",
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
    target: Literal["kohya", "comfy", "diffusers", "peft", "other", "default"] = option(
        ...,
        "Names in the new file: kohya (lora_unet_…, with alpha), also called default; comfy "
        "(diffusion_model.…, alpha folded in), also called other; those of diffusers; or peft, a folder.",
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


_FORM = "Names in the new file: kohya, comfy or diffusers; "


def _size(default: str) -> tuple[Any, Any]:
    rank = option(None, f"Rank of the pairs; {default}", group="Size", ge=1, metavar="RANK")
    energy = option(
        None,
        "Give each layer the smallest rank that holds this part of the squared norm of its change, such "
        "as 0.95; --rank is then a bound.",
        group="Size",
        gt=0,
        le=1,
    )
    return rank, energy


class LoraExtractConfig(Options):
    """`musubi lora extract`."""

    arch: str | None = _arch()
    base: str = option(..., "The checkpoint that was tuned.", group="Models", metavar="PATH")
    tuned: str = option(..., "What became of it.", group="Models", metavar="PATH")
    output: str = option(..., "The LoRA to write.", group="Output", metavar="PATH")
    rank: int | None = _size("32 when neither it nor --energy is given.")[0]
    energy: float | None = _size("")[1]
    all_layers: bool = option(
        False,
        "Make pairs of every linear layer, not only of those that training adapts.",
        group=_LORA,
    )
    rest: bool = option(
        False,
        "Keep the differences of all other tensors as they are: biases, norms, modulations and the "
        "layers that get no pair.",
        group=_LORA,
    )
    include_patterns: list[str] | None = option(
        None, "Patterns of layers to keep whatever excludes them.", group=_LORA, metavar="REGEX"
    )
    exclude_patterns: list[str] | None = option(
        None, "Patterns of layers to leave out.", group=_LORA, metavar="REGEX"
    )
    target: Literal["kohya", "comfy", "diffusers"] | None = option(
        None, _FORM + "what ComfyUI and diffusers load most of when not given.", group="Output"
    )
    save_precision: Literal["fp32", "bf16", "fp16"] = option(
        "bf16", "Dtype of the new file.", group="Output"
    )
    device: str | None = option(
        None, "Where to compute: `cuda`, `cpu`; cuda when there is one.", group="Output"
    )


class LoraResizeConfig(Options):
    """`musubi lora resize`."""

    files: list[str] = option(
        ..., "Files of any kind; several are added up.", group=_LORA, metavar="PATH"
    )
    arch: str | None = _arch()
    lora_multiplier: list[float] | None = option(
        None, "Strength of each, in the same order; 1.0 where missing.", group=_LORA
    )
    base: str | None = option(
        None,
        "The checkpoint that they are for; needed for DoRA and OFT, which depend on its weights.",
        group="Models",
        metavar="PATH",
    )
    output: str = option(..., "The LoRA to write.", group="Output", metavar="PATH")
    rank: int | None = _size("without it and --energy nothing is lost.")[0]
    energy: float | None = _size("")[1]
    target: Literal["kohya", "comfy", "diffusers"] | None = option(
        None, _FORM + "the first input's when not given.", group="Output"
    )
    save_precision: Literal["fp32", "bf16", "fp16"] = option(
        "bf16", "Dtype of the new file.", group="Output"
    )
    device: str | None = option(
        None, "Where to compute with --base: `cuda`, `cpu`; cuda when there is one.", group="Output"
    )

    @model_validator(mode="after")
    def _check(self) -> LoraResizeConfig:
        if len(self.lora_multiplier or ()) > len(self.files):
            raise ConfigError(
                f"--lora_multiplier has {counted(len(self.lora_multiplier or ()), 'value')} for "
                f"{counted(len(self.files), 'file')}.",
                fix="Give one for each file, in the same order.",
            )
        return self


class LoraBlocksConfig(Options):
    """`musubi lora blocks`."""

    files: list[str] = option(..., "Files of any kind.", group=_LORA, metavar="PATH")
    arch: str | None = _arch()
    picture: str | None = option(
        None, "Draw a bar for each block into this PNG file.", group="Output", metavar="PATH"
    )


class LoraInfoConfig(Options):
    """`musubi lora info`."""

    files: list[str] = option(..., "LoRA files.", group=_LORA, metavar="PATH")
    json_output: bool = option(
        False, "Say it as one JSON list, for programs.", group="Output", aliases=("json",)
    )


RETIRED: tuple[Retired, ...] = (Retired("dit_in_channels", "sizes are read from the checkpoint."),)
