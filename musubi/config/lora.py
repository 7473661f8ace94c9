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
        ..., "LoRA files, in any common format.", group=_LORA, metavar="PATH"
    )
    lora_multiplier: list[float] | None = option(
        None, "Strength of each file, in the same order; missing ones are 1.0.", group=_LORA
    )
    include_patterns: list[str] | None = option(
        None,
        "A pattern for each LoRA: use only keys that contain a match.",
        group=_LORA,
        metavar="REGEX",
    )
    exclude_patterns: list[str] | None = option(
        None,
        "A pattern for each LoRA: leave out keys that contain a match.",
        group=_LORA,
        metavar="REGEX",
    )
    lora_block_weights: list[str] | None = option(
        None,
        "Strengths by block, for each LoRA: STACK.N=VALUE, STACK.N-M=VALUE or STACK=VALUE, "
        "separated by commas, or one number for each block.",
        group=_LORA,
        metavar="WEIGHTS",
    )
    save_merged_model: str = option(
        ..., "The checkpoint to write, safetensors.", group="Output", metavar="PATH"
    )
    save_precision: Literal["fp32", "bf16", "fp16", "fp8", "fp8_scaled"] | None = option(
        None,
        "Dtype of the written checkpoint; the input's when not given. fp8_scaled is 8 bits with "
        "scales, which ComfyUI loads.",
        group="Output",
    )
    device: str | None = option(
        None, "Where to compute: `cuda`, `cpu`; cuda when there is one.", group="Output"
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
        "The architecture; needed only if it cannot be found from the file's metadata and tensor "
        "names.",
        group=_LORA,
        metavar="NAME",
    )


class LoraConvertConfig(Options):
    """`musubi lora convert`."""

    arch: str | None = _arch()
    input: str = option(..., "The LoRA file, in any common format.", group=_LORA, metavar="PATH")
    output: str = option(
        ...,
        "The safetensors file to write; it must not be the input.",
        group="Output",
        metavar="PATH",
    )
    target: Literal["kohya", "comfy", "diffusers", "peft", "other", "default"] = option(
        ...,
        "Names in the new file: kohya (lora_unet_…, with alpha), also called default; comfy "
        "(diffusion_model.…, alpha folded in), also called other; those of diffusers; or peft, a folder.",
        group="Output",
    )
    dtype: str | None = option(
        None, "Dtype of the new file, such as fp32; the input's when not given.", group="Output"
    )
    allow_lossy: bool = option(
        False,
        "Write the file even if parts of the input are lost: tensors that this version does not "
        "know, and tensors that the new format cannot hold.",
        group="Output",
    )


class LoraEmaConfig(Options):
    """`musubi lora ema`."""

    files: list[str] = option(..., "LoRA files of one run.", group=_LORA, metavar="PATH")
    output_file: str = option(
        ..., "The file to write, safetensors.", group="Output", metavar="PATH"
    )
    no_sort: bool = option(
        False,
        "Keep the given order. Without it, files are sorted by modification time, oldest first.",
        group=_LORA,
    )
    beta: float = option(
        0.95,
        "How much of the average each further file keeps, 0 to 1.",
        group="Average",
        ge=0,
        le=1,
    )
    beta2: float | None = option(
        None,
        "The value of beta at the last file; in between it changes evenly. Equal to beta when "
        "not given.",
        group="Average",
        ge=0,
        le=1,
    )
    sigma_rel: float | None = option(
        None,
        "Use a power-function average instead of beta; this is its width relative to the run, "
        "above 0 and below 0.2887.",
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
        "Give each layer the smallest rank that keeps this share of the squared norm of its "
        "change, such as 0.95. --rank is then the highest rank.",
        group="Size",
        gt=0,
        le=1,
    )
    return rank, energy


class LoraExtractConfig(Options):
    """`musubi lora extract`."""

    arch: str | None = _arch()
    base: str = option(..., "The original checkpoint.", group="Models", metavar="PATH")
    tuned: str = option(..., "The checkpoint after training.", group="Models", metavar="PATH")
    output: str = option(..., "The LoRA to write.", group="Output", metavar="PATH")
    rank: int | None = _size("32 when neither it nor --energy is given.")[0]
    energy: float | None = _size("")[1]
    all_layers: bool = option(
        False,
        "Make LoRA pairs for every linear layer, not only for those that training adapts.",
        group=_LORA,
    )
    rest: bool = option(
        False,
        "Also store the full differences of all other tensors: biases, norms, modulations, and "
        "layers without a LoRA pair.",
        group=_LORA,
    )
    include_patterns: list[str] | None = option(
        None,
        "Patterns of layers to include even if another rule excludes them.",
        group=_LORA,
        metavar="REGEX",
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
        ...,
        "Adapter files of any kind; several files are added together.",
        group=_LORA,
        metavar="PATH",
    )
    arch: str | None = _arch()
    lora_multiplier: list[float] | None = option(
        None, "Strength of each file, in the same order; missing ones are 1.0.", group=_LORA
    )
    base: str | None = option(
        None,
        "The checkpoint that the files are for; needed for DoRA and OFT, which depend on its "
        "weights.",
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

    files: list[str] = option(..., "Adapter files of any kind.", group=_LORA, metavar="PATH")
    arch: str | None = _arch()
    picture: str | None = option(
        None,
        "Also draw a bar chart of the blocks into this PNG file.",
        group="Output",
        metavar="PATH",
    )


class LoraInfoConfig(Options):
    """`musubi lora info`."""

    files: list[str] = option(..., "LoRA files.", group=_LORA, metavar="PATH")
    json_output: bool = option(
        False, "Print the result as one JSON list, for programs.", group="Output", aliases=("json",)
    )


RETIRED: tuple[Retired, ...] = (Retired("dit_in_channels", "sizes are read from the checkpoint."),)
