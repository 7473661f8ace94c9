"""The LoRA files that a generation uses: read, narrowed by patterns, then merged or attached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from torch import nn

from musubi.config.generate import GenerateConfig
from musubi.config.lora import LoraMergeConfig
from musubi.config.options import for_architecture, spared
from musubi.errors import ConfigError
from musubi.lora.adapter import Adapters
from musubi.lora.files import LoraFile, read_lora
from musubi.lora.merge import merging_transform
from musubi.lora.merge import run as run_merge
from musubi.plugin import Architecture, Report
from musubi.weights.load import Transform

T = TypeVar("T")


@dataclass(frozen=True)
class Chosen:
    """One LoRA file, narrowed to the modules that are wanted, and its strength."""

    file: LoraFile
    multiplier: float


def choose(
    config: GenerateConfig,
    architecture: Architecture,
    modules: Iterable[str],
    report: Report,
    *,
    ending: str = "",
) -> list[Chosen]:
    """Read the files of `--lora_weight`; multipliers and patterns go by position.

    Args:
        config: The options.
        architecture: Whose modules the files are for.
        modules: Dotted names of the DiT's modules.
        report: Told what in a file was not understood.
        ending: Of the options for another denoiser than the first: "_high_noise".

    Raises:
        CheckpointError: A file is no LoRA of this architecture.
        ConfigError: A pattern is no regular expression, or leaves nothing of its file.
    """
    names = list(modules)
    chosen: list[Chosen] = []
    for i, name in enumerate(getattr(config, f"lora_weight{ending}") or ()):
        whole = read_lora(Path(name), architecture, names)
        complaint = whole.complaint()
        if complaint is not None:
            report.warn(complaint)
        file = whole.selected(_at(config.include_patterns, i), _at(config.exclude_patterns, i))
        file = file.sparing(spared(config, architecture))
        if not file.pairs:
            raise ConfigError(
                f"The patterns leave none of the {len(whole.pairs)} modules of {name}.",
                fix="Widen --include_patterns, or exclude less.",
            )
        multiplier = _at(getattr(config, f"lora_multiplier{ending}"), i)
        chosen.append(Chosen(file, 1.0 if multiplier is None else multiplier))
    return chosen


def merging(chosen: Sequence[Chosen]) -> Transform:
    """What merges the files into the DiT's tensors while they load."""
    return merging_transform([(one.file, one.multiplier) for one in chosen])


def attach(dit: nn.Module, chosen: Sequence[Chosen]) -> None:
    """Put the files beside the DiT's layers, which stay as they are."""
    for one in chosen:
        adapters = Adapters.from_pairs(dit, one.file.pairs)
        adapters.multiplier = one.multiplier
        adapters.eval().requires_grad_(False)
        adapters.attach()


def save_merged(config: GenerateConfig, architecture: Architecture, report: Report) -> None:
    """Write the DiT with the LoRAs merged: what `musubi lora merge` does."""
    model = for_architecture(LoraMergeConfig, architecture, "lora merge")
    asked = {name: getattr(config, name, None) for name in model.model_fields}
    given = {name: value for name, value in asked.items() if value is not None}
    run_merge(cast(LoraMergeConfig, model(**given)), architecture, report)


def _at(values: Sequence[T] | None, i: int) -> T | None:
    return values[i] if values is not None and i < len(values) else None
