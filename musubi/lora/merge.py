"""Merging LoRAs into weights: while a network is loaded, or from file to file, a tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from musubi.config.lora import LoraMergeConfig
from musubi.config.options import paths, spared
from musubi.errors import ConfigError, RunError, counted
from musubi.lora.blocks import weighted
from musubi.lora.delta import Delta
from musubi.lora.files import LoraFile, read_lora
from musubi.lora.metadata import DENOISER
from musubi.lora.recast import Recast
from musubi.lora.tensors import OurTensors
from musubi.plugin import Architecture, Component, Report, TensorSource
from musubi.weights.contents import Inspection, examine, locate
from musubi.weights.dtypes import FP8, dtype_name
from musubi.weights.files import Weights, open_weights
from musubi.weights.write import stream

_SHOWN = 3


class Merging:
    """Adds adapters to weights: `(our name, tensor) -> tensor`, a touched one in float32.

    Args:
        files: Each with its multiplier.
    """

    def __init__(self, files: Sequence[tuple[LoraFile, float]]) -> None:
        self._files = list(files)
        self._used: set[str] = set()

    @property
    def unused(self) -> tuple[str, ...]:
        """What the files change, and no tensor so far was."""
        known = {name for file, _ in self._files for name in file.deltas}
        return tuple(sorted(known - self._used))

    def touches(self, name: str) -> bool:
        """Whether a tensor of this name is changed."""
        return any(name in file.deltas for file, _ in self._files)

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor with every adapter added; as it is when none is for it."""
        total: torch.Tensor | None = None
        for file, multiplier in self._files:
            delta = file.deltas.get(name)
            if delta is None:
                continue
            self._used.add(name)
            if not delta.fits(tuple(tensor.shape)):
                raise _misfit(file, name, delta, tensor)
            strength = multiplier * file.strengths.get(name, 1.0)
            change = delta.to(tensor.device).change(tensor) * strength
            total = change if total is None else total.add_(change)
        return tensor if total is None else total.add_(tensor)


def _misfit(file: LoraFile, name: str, delta: Delta, tensor: torch.Tensor) -> ConfigError:
    return ConfigError(
        f"{file.path} and the checkpoint disagree about {name!r}: {delta.size()} and "
        f"{tuple(tensor.shape)}.",
        fix="Give a LoRA of this model's size.",
    )


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
    component, given = _checkpoint(config, architecture)
    target = Path(config.save_merged_model)
    path = locate(component, given)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with open_weights(path) as weights:
        contents = examine(component, weights, others=architecture.components)
        if any(target.exists() and target.samefile(part) for part in weights.parts):
            raise ConfigError(
                f"{target} is the checkpoint that is merged into.", fix="Write to another file."
            )
        merging = _merging(config, architecture, component, contents, report)
        recast = None
        if config.save_precision is not None:
            recast = Recast.plan(weights, contents, component.traits, config.save_precision)
        Merge(weights, contents, merging, device, recast).write(target, report)
    if merging.unused:
        some = ", ".join(merging.unused[:_SHOWN])
        report.warn(
            f"Not used of the LoRAs: {counted(len(merging.unused), 'layer')}, such as {some}."
        )
    report.note(f"Merged {counted(len(config.lora_weight), 'LoRA file')} into {target}.")


def _checkpoint(config: LoraMergeConfig, architecture: Architecture) -> tuple[Component, Path]:
    """The denoiser that is merged into, of those that the architecture may have, and its file."""
    denoisers = [c for c in architecture.components if c.role == "dit"]
    known = paths(config, architecture)
    given = [c for c in denoisers if c.name in known]
    if not given:
        raise ConfigError(
            "There is no checkpoint to merge into.", fix=f"Give --{architecture.dit.option} PATH."
        )
    if len(given) > 1:
        one, other = given[:2]
        raise ConfigError(
            f"--{one.option} and --{other.option} are two checkpoints, and one is written.",
            fix=f"Merge twice: once with --{one.option} and its LoRA files, once with "
            f"--{other.option} and those for it.",
        )
    return given[0], known[given[0].name]


def check_denoiser(file: LoraFile, denoiser: str, *, place: str, fix: str) -> None:
    """Refuse a file that says it was trained for another of several denoisers.

    Args:
        file: What was read.
        denoiser: Where its changes would go.
        place: The option that sends them there.
        fix: What to type instead; `{other}` is the denoiser that the file names.

    Raises:
        ConfigError: It was trained for another one.
    """
    trained = file.metadata.get(DENOISER, denoiser)
    if trained != denoiser:
        raise ConfigError(
            f"{file.path} was trained for the {trained}, and {place} is for the {denoiser}.",
            fix=fix.format(other=trained),
        )


def _merging(
    config: LoraMergeConfig,
    architecture: Architecture,
    component: Component,
    contents: Inspection,
    report: Report,
) -> Merging:
    multipliers = list(config.lora_multiplier or ())
    multipliers += [1.0] * (len(config.lora_weight) - len(multipliers))
    files = []
    for i, (name, multiplier) in enumerate(zip(config.lora_weight, multipliers, strict=True)):
        file = read_lora(name, architecture, contents.shapes)
        check_denoiser(
            file,
            component.name,
            place=f"--{component.option}",
            fix=f"Give --{{other}} a checkpoint in the place of --{component.option}, or the file of "
            f"the {component.name}.",
        )
        for line in filter(None, (file.complaint(), *file.notes)):
            report.warn(line)
        file = weighted(file, _at(config.lora_block_weights, i), architecture, contents.shapes)
        files.append((file.sparing(spared(config, architecture)), multiplier))
    merging = merging_transform(
        files, include=config.include_patterns or (), exclude=config.exclude_patterns or ()
    )
    if not any(merging.touches(name) for name in contents.shapes):
        raise ConfigError(
            "No layer is left to merge.", fix="Widen --include_patterns, or exclude less."
        )
    return merging


def _at(values: Sequence[str] | None, i: int) -> str | None:
    return values[i] if values is not None and i < len(values) else None


class Merge:
    """One checkpoint, rewritten in its own names.

    Args:
        weights: Open.
        contents: What it is.
        merging: What is added.
        device: Where to multiply.
        recast: How it is stored, when not as it was.
    """

    def __init__(
        self,
        weights: Weights,
        contents: Inspection,
        merging: Merging,
        device: torch.device,
        recast: Recast | None = None,
    ) -> None:
        self.weights, self.contents = weights, contents
        self.merging, self.device, self.recast = merging, device, recast
        self._tensors = OurTensors(weights, contents, device)
        self._ours: dict[str, tuple[str, TensorSource, int]] = {
            theirs: (ours, source, part)
            for ours, source in contents.sources.items()
            if merging.touches(ours)
            for part, theirs in enumerate(source.names)
        }
        self._weight_of = {
            scale: name for name, scale in contents.scales.items() if name in self._ours
        }
        self._last: tuple[str, torch.Tensor] | None = None

    def write(self, target: Path, report: Report) -> None:
        """Write the result; its tensors that no adapter touches are copied bit for bit."""
        weights, recast = self.weights, self.recast
        entries = [(n, weights.dtypes[n], weights.shapes[n]) for n in weights.names]
        if recast is not None:
            entries = list(recast.entries)
        dtypes = {name: dtype for name, dtype, _ in entries}
        with report.progress("Merging", len(entries), unit="tensors") as bar:

            def produce(name: str) -> torch.Tensor:
                made = self.made(name) if recast is None else self._recast(name, dtypes[name])
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
        merged = self.merged(name)
        scale = self.contents.scales.get(name)
        if scale is not None:
            factor = self._factor(merged, self.weights.read(scale), stored.dtype).to(merged.device)
            merged = merged / factor.float().reshape(-1, *(1,) * (merged.ndim - 1))
        return self._stored(name, merged, stored.dtype)

    def _recast(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        assert self.recast is not None
        made = self.recast.made(name, self.merged)
        if made is not None:
            return made
        if name in self.recast.kept:
            return self.weights.read(name)
        return self._stored(name, self.recast.shrunk(name, self.merged(name)).float(), dtype)

    def merged(self, name: str) -> torch.Tensor:
        """Their tensor with its share of the change, in float32; as it stands for when untouched."""
        if name not in self._ours:
            return self._tensors.expanded(name)
        ours, source, part = self._ours[name]
        merged = self._whole(ours)
        if source.operation == "swap":
            return torch.cat(merged.chunk(2)[::-1])
        if source.operation == "squeeze":
            ones = (None,) * source.ones
            return merged[(*ones, ...) if source.leading else (..., *ones)]
        if source.operation == "concat":
            start = sum(self.weights.shapes[n][0] for n in source.names[:part])
            return merged[start : start + self.weights.shapes[name][0]]
        return merged.clone()

    def _whole(self, ours: str) -> torch.Tensor:
        """Our tensor, merged; the last one is kept, for its scale or its other parts come next."""
        if self._last is None or self._last[0] != ours:
            self._last = ours, self.merging(ours, self._tensors.read(ours))
        return self._last[1]

    def _new_scale(self, name: str, scale: str) -> torch.Tensor:
        return self._factor(self.merged(name), self.weights.read(scale), self.weights.dtypes[name])

    def _factor(self, merged: torch.Tensor, old: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The scale that lets the 8-bit range hold the merged weight, shaped like the old one."""
        rows = old.numel() > 1
        most = merged.abs().flatten(1).amax(1) if rows else merged.abs().amax()
        return (most / _largest(dtype)).clamp(min=1e-8).reshape(old.shape).to("cpu", old.dtype)

    def _stored(self, name: str, merged: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        most = torch.stack(merged.aminmax()).abs().max()
        eight = dtype in FP8 or dtype is torch.int8
        fits = torch.isfinite(most if eight else most.to(dtype))
        if not fits:
            raise RunError(
                f"Merged, {name!r} does not fit {dtype_name(dtype)}: its largest number is "
                f"{float(most):.4g}.",
                fix="Use a smaller --lora_multiplier, or a checkpoint in bfloat16.",
            )
        if dtype is torch.int8:
            merged = merged.round_()
        # torch casts what is too large for 8 bits to NaN
        limit = _largest(dtype)
        return (merged.clamp_(-limit, limit) if eight else merged).to(dtype)


def _largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max
