"""The LoRA files that a generation uses: read, narrowed by patterns, then merged or attached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

from torch import nn

from musubi.config.generate import GenerateConfig
from musubi.config.lora import LoraMergeConfig
from musubi.config.options import expert_ending, for_architecture, further_denoisers, spared
from musubi.errors import ConfigError, counted
from musubi.lora.adapter import Adapters
from musubi.lora.blocks import weighted
from musubi.lora.delta import Delta, Difference, Pair, Replacement
from musubi.lora.files import LoraFile, read_lora
from musubi.lora.kinds import Decomposed
from musubi.lora.merge import check_denoiser, merging_transform
from musubi.lora.merge import run as run_merge
from musubi.lora.metadata import DENOISER
from musubi.lora.names import WEIGHT
from musubi.plugin import Architecture, Report
from musubi.weights.load import Transform

T = TypeVar("T")


@dataclass(frozen=True)
class ChosenLora:
    """One LoRA file, reduced to the chosen modules, and its strength."""

    file: LoraFile
    multiplier: float


def choose(
    config: GenerateConfig,
    architecture: Architecture,
    shapes: Mapping[str, tuple[int, ...]],
    report: Report,
    *,
    denoiser: str,
    ending: str = "",
) -> list[ChosenLora]:
    """Read the files of `--lora_weight`; multipliers and patterns go by position.

    Args:
        config: The options.
        architecture: The architecture that the files are for.
        shapes: Name of each parameter of the DiT's checkpoint → its shape.
        report: Gets a warning about tensors that were not understood.
        denoiser: The name of the denoiser that they are for.
        ending: Ending of the options for a denoiser that is not the first: "_high_noise".

    Raises:
        CheckpointError: A file is no LoRA of this architecture, or of another size.
        ConfigError: A pattern is no regular expression, or leaves nothing of its file; or a file was
            trained for another of the task's denoisers.
    """
    chosen: list[ChosenLora] = []
    for i, name in enumerate(getattr(config, f"lora_weight{ending}") or ()):
        whole = read_lora(Path(name), architecture, shapes)
        check_denoiser(
            whole,
            denoiser,
            place=f"--lora_weight{ending}",
            fix=f"Give it to --lora_weight{_ending_of(whole, architecture)}, and this one the file of "
            f"the {denoiser}.",
        )
        for line in filter(None, (whole.complaint(), *whole.notes)):
            report.warn(line)
        file = whole.selected(_at(config.include_patterns, i), _at(config.exclude_patterns, i))
        file = file.sparing(spared(config, architecture))
        file = weighted(file, _at(config.lora_block_weights, i), architecture, shapes)
        if not file.deltas:
            raise ConfigError(
                f"The patterns leave none of the {counted(len(whole.deltas), 'module')} of {name}.",
                fix="Widen --include_patterns, or exclude less.",
            )
        multiplier = _at(getattr(config, f"lora_multiplier{ending}"), i)
        chosen.append(ChosenLora(file, 1.0 if multiplier is None else multiplier))
    return chosen


def _ending_of(file: LoraFile, architecture: Architecture) -> str:
    """Of the options for the denoiser that a file names."""
    trained = file.metadata.get(DENOISER)
    component = next((c for c in architecture.components if c.name == trained), None)
    return "" if component is None else expert_ending(architecture, component)


def merging(chosen: Sequence[ChosenLora]) -> Transform:
    """Make the function that merges the files into the DiT's tensors while they load."""
    return merging_transform([(one.file, one.multiplier) for one in chosen])


def merging_rest(chosen: Sequence[ChosenLora]) -> Transform | None:
    """Make the function that merges the changes that `attach` cannot attach to a layer; None if
    there are none.

    These are differences of norms, modulations and the like: small tensors, and no layer's product.
    """
    rest = [
        ChosenLora(replace(one.file, deltas=kept), one.multiplier)
        for one in chosen
        if (kept := {n: d for n, d in one.file.deltas.items() if not _attachable(n, d)})
    ]
    return merging(rest) if rest else None


def attach(dit: nn.Module, chosen: Sequence[ChosenLora]) -> None:
    """Attach the files to the DiT's layers, whose weights stay unchanged."""
    for one in chosen:
        beside = {n: d for n, d in one.file.deltas.items() if _attachable(n, d)}
        if not beside:
            continue
        adapters = Adapters.from_deltas(dit, beside, strengths=one.file.strengths)
        adapters.multiplier = one.multiplier
        adapters.eval().requires_grad_(False)
        adapters.attach()


def _attachable(name: str, delta: Delta) -> bool:
    """Whether a change is to the weight of a linear layer; other changes are merged."""
    plain = delta.inner if isinstance(delta, Decomposed) else delta
    matrix = not isinstance(plain, (Difference, Replacement)) or plain.value.ndim == 2
    convolution = isinstance(plain, Pair) and (plain.down.ndim > 2 or plain.mid is not None)
    return name.endswith(WEIGHT) and matrix and not convolution


def save_merged(config: GenerateConfig, architecture: Architecture, report: Report) -> None:
    """Write the DiT with the LoRAs merged: what `musubi lora merge` does."""
    model = for_architecture(LoraMergeConfig, architecture, "lora merge")
    asked = {name: getattr(config, name, None) for name in model.model_fields}
    for other in further_denoisers(architecture):
        ending = expert_ending(architecture, other)
        if asked.get("lora_weight") is None and asked.get(other.option) is not None:
            for name in ("lora_weight", "lora_multiplier"):
                asked[name] = getattr(config, f"{name}{ending}")
        elif getattr(config, f"lora_weight{ending}") is not None:
            raise ConfigError(
                f"--save_merged_model writes one checkpoint, and --lora_weight{ending} is for another.",
                fix=f"Merge twice: once with --{other.option} and --lora_weight{ending}, without "
                f"--{architecture.dit.option} and --lora_weight.",
            )
    given = {name: value for name, value in asked.items() if value is not None}
    run_merge(cast(LoraMergeConfig, model(**given)), architecture, report)


def _at(values: Sequence[T] | None, i: int) -> T | None:
    return values[i] if values is not None and i < len(values) else None
