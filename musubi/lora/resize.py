"""`musubi lora resize`: adapters of any kind as one LoRA of another rank; several are added up."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence

import torch

from musubi.config.lora import LoraResizeConfig
from musubi.errors import CheckpointError, ConfigError, counted
from musubi.lora.delta import Delta, Difference
from musubi.lora.extract import show_errors, tensors_of
from musubi.lora.files import LoraFile, architecture_of, keep_apart, layer_of, read_lora
from musubi.lora.layout import write_lora
from musubi.lora.lowrank import Size, added
from musubi.lora.names import WEIGHT
from musubi.lora.tensors import OurTensors
from musubi.plugin import Report
from musubi.weights.dtypes import parse_dtype

_OF_ONE_RUN = ("sshs_", "ss_network_dim", "ss_network_alpha", "lora_adapter_metadata")


def run(config: LoraResizeConfig, report: Report) -> None:
    """Write the sum, and say what was lost.

    Raises:
        CheckpointError: A file is no adapter of this architecture.
        ConfigError: The output is an input, or a kind needs the checkpoint.
    """
    target = keep_apart(config.output, config.files)
    architecture = architecture_of(config.files[0], config.arch)
    files = [read_lora(path, architecture) for path in config.files]
    for file in files:
        for line in filter(None, (file.complaint(), *file.notes)):
            report.warn(line)
    strengths = [*(config.lora_multiplier or ())]
    strengths += [1.0] * (len(files) - len(strengths))
    with contextlib.ExitStack() as stack:
        base = None
        if config.base is not None:
            device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            base = stack.enter_context(tensors_of(architecture.dit, config.base, device))
        deltas = _summed(
            list(zip(files, strengths, strict=True)), Size(config.rank, config.energy), base, report
        )
    kept = {
        key: value for key, value in files[0].metadata.items() if not key.startswith(_OF_ONE_RUN)
    }
    form = config.target or files[0].form
    write_lora(
        target,
        deltas,
        form=form,
        dtype=parse_dtype(config.save_precision),
        metadata=kept,
        component=architecture.dit,
    )
    report.note(
        f"Wrote {counted(len(deltas), 'change')} of {architecture.title} to {target}, form {form}."
    )


def _summed(
    files: Sequence[tuple[LoraFile, float]],
    size: Size,
    base: OurTensors | None,
    report: Report,
) -> dict[str, Delta]:
    changes: dict[str, list[tuple[Delta, float]]] = defaultdict(list)
    for file, strength in files:
        for name, delta in file.deltas.items():
            changes[name].append((delta, strength))
    made: dict[str, Delta] = {}
    groups: dict[str, list[float]] = {}
    with report.progress("Resizing", len(changes), unit="layers") as bar:
        for name, of in changes.items():
            weight = _weight(files, name, of, base)
            if _small(name, of):
                made[name] = _difference(of, weight)
            else:
                at = [(d if weight is None else d.to(weight.device), s) for d, s in of]
                pair, total, left = added(at, weight, size)
                if pair is not None:
                    made[name] = pair.to("cpu")
                    rank = float(pair.rank or 0)
                    sums = groups.setdefault("all layers", [0.0] * 4)
                    for i, value in enumerate((1.0, total, left, rank)):
                        sums[i] += value
            bar.advance()
    show_errors(groups, report)
    if not made:
        raise ConfigError("The sum changes nothing.", fix="Give other files or multipliers.")
    return made


def _small(name: str, of: Sequence[tuple[Delta, float]]) -> bool:
    """Whether it is a bias, a norm or the like, which has no rank."""
    if not name.endswith(WEIGHT):
        return True
    return all(isinstance(d, Difference) and d.value.ndim < 2 for d, _ in of)


def _difference(of: Sequence[tuple[Delta, float]], weight: torch.Tensor | None) -> Delta:
    total: torch.Tensor | None = None
    for delta, strength in of:
        change = (delta.matrix() if weight is None else delta.change(weight)) * strength
        total = change if total is None else total + change
    assert total is not None
    return Difference(total.cpu())


def _weight(
    files: Sequence[tuple[LoraFile, float]],
    name: str,
    of: Sequence[tuple[Delta, float]],
    base: OurTensors | None,
) -> torch.Tensor | None:
    needed = next((d for d, _ in of if not d.linear), None)
    if needed is None and any(type(d) is not type(of[0][0]) for d, _ in of) and base is not None:
        return base.read(name)
    if needed is None:
        return None
    if base is None:
        path = next(file.path for file, _ in files if file.deltas.get(name) is needed)
        raise ConfigError(
            f"{path} changes {layer_of(name)!r} by a {needed.title}, which depends on the weight.",
            fix="Give the checkpoint that it is for: --base PATH.",
        )
    if name not in base.contents.sources:
        raise CheckpointError(
            f"{base.weights.path} has no {name!r}.", fix="Give the checkpoint of this model."
        )
    weight = base.read(name)
    if not needed.fits(tuple(weight.shape)):
        raise CheckpointError(
            f"The {needed.title} of {layer_of(name)!r} is for {needed.size()}, and the checkpoint has "
            f"{tuple(weight.shape)}.",
            fix="Give the checkpoint of this model's size.",
        )
    return weight
