"""The options of `musubi lora merge` and `lora info`."""

from __future__ import annotations

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


class LoraInfoConfig(Options):
    """`musubi lora info`."""

    files: list[str] = option(..., "LoRA files.", group=_LORA, metavar="PATH")
    json_output: bool = option(
        False, "Say it as one JSON list, for programs.", group="Output", aliases=("json",)
    )


RETIRED: tuple[Retired, ...] = (Retired("dit_in_channels", "sizes are read from the checkpoint."),)
