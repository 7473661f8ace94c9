"""`musubi lora extract`: the difference of two checkpoints as a LoRA, one layer at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from musubi import registry
from musubi.config.lora import LoraExtractConfig
from musubi.errors import CheckpointError, ConfigError, counted
from musubi.lora.delta import Delta, Difference
from musubi.lora.files import keep_apart, layer_of
from musubi.lora.layout import write_lora
from musubi.lora.lowrank import Size, approximated
from musubi.lora.names import WEIGHT, known_parameters
from musubi.lora.patterns import choose
from musubi.lora.tensors import OurTensors
from musubi.lora.verify import best_form
from musubi.plugin import Architecture, Component, LoraTargets, Report
from musubi.weights.contents import examine, locate
from musubi.weights.dtypes import parse_dtype
from musubi.weights.files import open_weights

_SHOWN = 5


def run(config: LoraExtractConfig, report: Report) -> None:
    """Write it, and say how much of the difference it holds.

    Raises:
        CheckpointError: A file is no denoiser, or the two are of different sizes.
        ConfigError: The output is an input, or the two files do not differ.
        RunError: The result cannot be stored.
    """
    target = keep_apart(config.output, [config.base, config.tuned])
    architecture = architecture_of(config.base, config.arch)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    size = Size(config.rank if config.rank or config.energy else 32, config.energy)
    with (
        tensors_of(architecture.dit, config.base, device) as base,
        tensors_of(architecture.dit, config.tuned, device) as tuned,
    ):
        deltas, left_out = _extracted(config, architecture, base, tuned, size, report)
    if not deltas:
        raise ConfigError(
            f"{config.tuned} and {config.base} do not differ in any layer that a LoRA holds.",
            fix="Give a tuned checkpoint and the one that it came from.",
        )
    form = config.target or best_form(architecture, deltas)[0]
    write_lora(
        target,
        deltas,
        form=form,
        dtype=parse_dtype(config.save_precision),
        metadata={"ss_base_model_version": architecture.name, "ss_network_module": "networks.lora"},
        component=architecture.dit,
    )
    if left_out:
        report.warn(
            f"The file leaves out {counted(len(left_out), 'other tensor')} that differ too, such as "
            f"{left_out[0]!r}. Add --rest to keep such differences as they are."
        )
    report.note(
        f"Wrote {counted(len(deltas), 'change')} of {architecture.title} to {target}, form {form}."
    )


def architecture_of(path: str, name: str | None) -> Architecture:
    """Whose denoiser a checkpoint is: the one of that name, else the first that recognises it.

    Raises:
        CheckpointError: Nothing installed does.
    """
    if name is not None:
        return registry.find(name)
    for known in registry.names():
        with contextlib.suppress(CheckpointError, ConfigError):
            architecture = registry.find(known)
            with open_weights(locate(architecture.dit, Path(path))) as weights:
                examine(architecture.dit, weights)
            return architecture
    raise CheckpointError(
        f"{path} is no denoiser that is known here.", fix="Give another file, or --arch NAME."
    )


@contextlib.contextmanager
def tensors_of(component: Component, path: str, device: torch.device) -> Iterator[OurTensors]:
    """A checkpoint, open.

    Raises:
        CheckpointError: The file is something else.
    """
    with open_weights(locate(component, Path(path))) as weights:
        yield OurTensors(weights, examine(component, weights), device)


def _extracted(
    config: LoraExtractConfig,
    architecture: Architecture,
    base: OurTensors,
    tuned: OurTensors,
    size: Size,
    report: Report,
) -> tuple[dict[str, Delta], list[str]]:
    """The changes by our names, and the names of what differs and is left out."""
    shapes, others = base.contents.shapes, tuned.contents.shapes
    odd = next((n for n in shapes if others.get(n) != shapes[n]), None)
    if odd is not None or shapes.keys() != others.keys():
        odd = odd or next(n for n in others if n not in shapes)
        raise CheckpointError(
            f"{config.base} and {config.tuned} are not of one model: {odd!r} is "
            f"{shapes.get(odd, 'not there')} in the first and {others.get(odd, 'not there')} in the "
            "second.",
            fix="Give a tuned checkpoint and the one that it came from.",
        )
    wanted = set(_layers(config, architecture, base))
    deltas, left_out = dict[str, Delta](), list[str]()
    groups: dict[str, list[float]] = {}
    with report.progress("Extracting", len(shapes), unit="tensors") as bar:
        for name in shapes:
            change = tuned.read(name).float() - base.read(name).float()
            if not torch.isfinite(change).all():
                raise CheckpointError(
                    f"The difference of {name!r} holds a number that is not finite.",
                    fix="One of the checkpoints is damaged; download or train it again.",
                )
            if name in wanted:
                pair, total, left = approximated(change, size)
                if pair is not None:
                    deltas[name] = pair.to("cpu")
                    sums = groups.setdefault(_group(name), [0.0, 0.0, 0.0, 0.0])
                    for i, value in enumerate((1.0, total, left, float(pair.rank))):
                        sums[i] += value
            elif bool(change.any()):
                if config.rest:
                    deltas[name] = Difference(change.cpu())
                else:
                    left_out.append(name)
            bar.advance()
    show_errors(groups, report)
    return deltas, left_out


def show_errors(groups: dict[str, list[float]], report: Report) -> None:
    """What was kept and lost, for each kind of layer: count, squared norm, squared rest, ranks."""
    rows = [
        (
            group,
            int(count),
            f"{ranks / count:.1f}",
            f"{total**0.5:.4g}",
            f"{(left / total) ** 0.5:.2%}",
        )
        for group, (count, total, left, ranks) in sorted(groups.items())
        if total
    ]
    whole, lost = (sum(g[i] for g in groups.values()) for i in (1, 2))
    if rows:
        rows.append(
            (
                "all",
                sum(r[1] for r in rows),
                "",
                f"{whole**0.5:.4g}",
                f"{(lost / whole) ** 0.5:.2%}",
            )
        )
    columns = ("layers", "count", "mean rank", "norm of the change", "lost")
    report.table("What the pairs hold", columns, rows)


def _group(name: str) -> str:
    return ".".join(
        "*" if part.isdigit() and i == 1 else part
        for i, part in enumerate(layer_of(name).split("."))
    )


def _layers(config: LoraExtractConfig, architecture: Architecture, base: OurTensors) -> list[str]:
    """Names of the weights that become pairs."""
    component, shapes = architecture.dit, base.contents.shapes
    targets = component.traits.lora or LoraTargets(include=(".*",))
    if config.all_layers:
        targets = LoraTargets(include=(".*",))
    # An embedding or a table has two axes as well.
    linear = known_parameters(component, [base.contents.numbers], linear=True)
    chosen, notes = choose(
        [layer_of(name) for name in shapes if name in linear],
        targets,
        include=config.include_patterns or (),
        exclude=config.exclude_patterns or (),
    )
    if not chosen:
        raise ConfigError(
            "No layer is left to extract. " + " ".join(notes[:_SHOWN]),
            fix="Widen --include_patterns, or exclude less.",
        )
    return [f"{layer}{WEIGHT}" for layer in chosen]
