"""Merging LoRAs into weights: while a network is loaded, or from file to file, a tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from musubi.config.lora import LoraMergeConfig
from musubi.config.options import paths, spared
from musubi.errors import ConfigError, RunError
from musubi.lora.files import LoraFile, read_lora
from musubi.lora.pair import Pair
from musubi.plugin import Architecture, Report, Source
from musubi.weights.contents import Inspection, examine, locate
from musubi.weights.dtypes import FP8, dtype_name
from musubi.weights.files import Weights, open_weights
from musubi.weights.scaled import expand
from musubi.weights.write import stream

_SHOWN = 3


class Merging:
    """Adds LoRAs to weights: `(our name, tensor) -> tensor`, a touched one in float32.

    Args:
        files: Each with its multiplier.
    """

    def __init__(self, files: Sequence[tuple[LoraFile, float]]) -> None:
        self._files = list(files)
        self._used: set[str] = set()

    @property
    def unused(self) -> tuple[str, ...]:
        """Layers of the LoRAs that no tensor so far belonged to."""
        known = {path for file, _ in self._files for path in file.pairs}
        return tuple(sorted(known - self._used))

    def touches(self, name: str) -> bool:
        """Whether a tensor of this name is changed."""
        return bool(self._pairs(name))

    def delta(self, name: str, device: torch.device) -> torch.Tensor | None:
        """What is added to a tensor, in float32; None when nothing is."""
        total: torch.Tensor | None = None
        for pair, multiplier in self._pairs(name):
            self._used.add(name.removesuffix(".weight"))
            moved = pair._replace(down=pair.down.to(device), up=pair.up.to(device))
            change = moved.delta().mul_(multiplier)
            total = change if total is None else total.add_(change)
        return total

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor with every LoRA added; as it is when none is for it."""
        change = self.delta(name, tensor.device)
        return tensor if change is None else change.add_(fitting(name, tensor, change))

    def _pairs(self, name: str) -> list[tuple[Pair, float]]:
        path = name.removesuffix(".weight")
        if path == name:
            return []
        return [(f.pairs[path], m) for f, m in self._files if path in f.pairs]


def merging_transform(
    files: Sequence[tuple[LoraFile, float]],
    *,
    include: Sequence[str | None] = (),
    exclude: Sequence[str | None] = (),
) -> Merging:
    """What `weights.load.load` takes as `transform` to merge LoRAs while loading.

    Args:
        files: Each with its multiplier.
        include: By position, a pattern found in the keys to use; missing ones use all.
        exclude: By position, a pattern found in the keys to leave out.
    """
    chosen = []
    for i, (file, multiplier) in enumerate(files):
        wanted = include[i] if i < len(include) else None
        dropped = exclude[i] if i < len(exclude) else None
        chosen.append((file.selected(wanted, dropped), multiplier))
    return Merging(chosen)


def run(config: LoraMergeConfig, architecture: Architecture, report: Report) -> None:
    """`musubi lora merge`: one tensor is in memory at a time, whatever the size of the file.

    Raises:
        ConfigError: No checkpoint was given, or it is also the output.
        CheckpointError: A file cannot be used.
        RunError: The result cannot be stored.
    """
    component = architecture.dit
    given = paths(config, architecture).get(component.name)
    if given is None:
        raise ConfigError(
            "There is no checkpoint to merge into.", fix=f"Give --{component.option} PATH."
        )
    target = Path(config.save_merged_model)
    path = locate(component, given)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with open_weights(path) as weights:
        contents = examine(component, weights, others=architecture.components)
        if any(target.exists() and target.samefile(part) for part in weights.parts):
            raise ConfigError(
                f"{target} is the checkpoint that is merged into.", fix="Write to another file."
            )
        merging = _merging(config, architecture, contents, report)
        Merge(weights, contents, merging, device).write(target, report)
    if merging.unused:
        some = ", ".join(merging.unused[:_SHOWN])
        report.warn(f"{len(merging.unused)} layers of the LoRAs were not used, such as {some}.")
    report.note(f"Merged {len(config.lora_weight)} LoRA files into {target}.")


def _merging(
    config: LoraMergeConfig, architecture: Architecture, contents: Inspection, report: Report
) -> Merging:
    layers = [n.removesuffix(".weight") for n, s in contents.shapes.items() if len(s) == 2]
    multipliers = list(config.lora_multiplier or ())
    multipliers += [1.0] * (len(config.lora_weight) - len(multipliers))
    files = []
    for name, multiplier in zip(config.lora_weight, multipliers, strict=True):
        file = read_lora(name, architecture, layers)
        complaint = file.complaint()
        if complaint:
            report.warn(complaint)
        files.append((file.sparing(spared(config, architecture)), multiplier))
    merging = merging_transform(
        files, include=config.include_patterns or (), exclude=config.exclude_patterns or ()
    )
    if not any(merging.touches(f"{layer}.weight") for layer in layers):
        raise ConfigError(
            "No layer is left to merge.", fix="Widen --include_patterns, or exclude less."
        )
    return merging


class Merge:
    """One checkpoint, rewritten in its own names and dtypes.

    Args:
        weights: Open.
        contents: What it is.
        merging: What is added.
        device: Where to multiply.
    """

    def __init__(
        self, weights: Weights, contents: Inspection, merging: Merging, device: torch.device
    ) -> None:
        self.weights, self.contents = weights, contents
        self.merging, self.device = merging, device
        self._ours: dict[str, tuple[str, Source, int]] = {
            theirs: (ours, source, part)
            for ours, source in contents.sources.items()
            if merging.touches(ours)
            for part, theirs in enumerate(source.names)
        }
        self._weight_of = {
            scale: name for name, scale in contents.scales.items() if name in self._ours
        }

    def write(self, target: Path, report: Report) -> None:
        """Write the result; its tensors that no LoRA touches are copied bit for bit."""
        weights = self.weights
        entries = [(n, weights.dtypes[n], weights.shapes[n]) for n in weights.names]
        with report.progress("Merging", len(entries), unit="tensors") as bar:

            def produce(name: str) -> torch.Tensor:
                made = self.made(name)
                bar.advance()
                return made

            stream(target, entries, produce, {"format": "pt", **weights.metadata})

    def made(self, name: str) -> torch.Tensor:
        """One tensor of the result."""
        if name in self._weight_of:
            return self._new_scale(self._weight_of[name], name)
        stored = self.weights.read(name)
        if name not in self._ours:
            return stored
        merged = self._merged(name, stored)
        scale = self.contents.scales.get(name)
        if scale is not None:
            factor = self._factor(merged, self.weights.read(scale), stored.dtype).to(merged.device)
            merged = merged / factor.float().reshape(-1, *(1,) * (merged.ndim - 1))
        return self._stored(name, merged, stored.dtype)

    def _merged(self, name: str, stored: torch.Tensor) -> torch.Tensor:
        """Their tensor with its share of the change, in float32."""
        ours, source, part = self._ours[name]
        scale = self.contents.scales.get(name)
        weight = expand(
            name, stored.to(self.device), self.weights.read(scale) if scale is not None else None
        )
        change = self.merging.delta(ours, self.device)
        assert change is not None
        if source.operation == "swap":
            change = torch.cat(change.chunk(2)[::-1])
        elif source.operation == "squeeze":
            ones = (None,) * source.ones
            change = change[(*ones, ...) if source.leading else (..., *ones)]
        elif source.operation == "concat":
            start = sum(self.weights.shapes[n][0] for n in source.names[:part])
            change = change[start : start + weight.shape[0]]
        return fitting(name, change, weight).add_(weight)

    def _new_scale(self, name: str, scale: str) -> torch.Tensor:
        stored = self.weights.read(name)
        return self._factor(self._merged(name, stored), self.weights.read(scale), stored.dtype)

    def _factor(self, merged: torch.Tensor, old: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The scale that lets the 8-bit range hold the merged weight, shaped like the old one."""
        rows = old.numel() > 1
        most = merged.abs().flatten(1).amax(1) if rows else merged.abs().amax()
        limit = torch.finfo(dtype).max
        return (most / limit).clamp(min=1e-8).reshape(old.shape).to("cpu", old.dtype)

    def _stored(self, name: str, merged: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        most = torch.stack(merged.aminmax()).abs().max()
        limit = torch.finfo(dtype).max
        fits = torch.isfinite(most if dtype in FP8 else most.to(dtype))
        if not fits:
            raise RunError(
                f"Merged, {name!r} does not fit {dtype_name(dtype)}: its largest number is "
                f"{float(most):.4g}.",
                fix="Use a smaller --lora_multiplier, or a checkpoint in bfloat16.",
            )
        # torch casts what is too large for 8 bits to NaN
        return (merged.clamp_(-limit, limit) if dtype in FP8 else merged).to(dtype)


def fitting(name: str, tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The first tensor, once it is known that the two have one shape.

    Raises:
        ConfigError: They have not.
    """
    if tensor.shape != other.shape:
        raise ConfigError(
            f"The LoRA and the checkpoint disagree about {name!r}: {tuple(tensor.shape)} and "
            f"{tuple(other.shape)}.",
            fix="Give a LoRA of this model's size.",
        )
    return tensor
