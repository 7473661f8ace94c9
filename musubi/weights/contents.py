"""What a checkpoint is to a component: its dialect, our names, and the numbers to build from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from musubi import registry
from musubi.errors import CheckpointError, ConfigError, counted, line_of
from musubi.plugin.architecture import Component
from musubi.plugin.keys import KeyMap, TensorSource
from musubi.untrusted import parse_json, read_text
from musubi.weights.files import Weights, open_weights
from musubi.weights.paths import folders_with_weights, readable, weight_sets
from musubi.weights.scaled import split_scales

# Where published snapshots keep a component of each role.
_FOLDERS = {
    "dit": ("transformer",),
    "vae": ("vae",),
    "text": ("text_encoder",),
    "image": ("image_encoder",),
}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a checkpoint holds, in our names; no tensor was read.

    Args:
        path: The file, or the folder in a snapshot.
        dialect: The layout it is published in.
        numbers: What the component is built from.
        sources: Our name to where it comes from in the file.
        shapes: Our name to shape.
        dtypes: Our name to the dtype that is stored.
        scales: Name in the file of a scaled weight to the name of its scale.
    """

    path: Path
    dialect: KeyMap
    numbers: Mapping[str, Any]
    sources: Mapping[str, TensorSource]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    scales: Mapping[str, str]


def inspect(
    component: Component, path: Path | str, *, others: Iterable[Component] = ()
) -> Inspection:
    """Recognise a component's checkpoint without reading its tensors.

    Args:
        component: What the file should be.
        path: As `open_weights` takes it, or a snapshot with the component in a subfolder.
        others: Components that the file may be instead, for the message.

    Raises:
        CheckpointError: The file cannot be read, or is something else.
    """
    found = locate(component, Path(path))
    with open_weights(found) as weights:
        return examine(component, weights, others=others)


def locate(component: Component, path: Path) -> Path:
    """The path, or the subfolder that holds the component when the path is a whole snapshot."""
    with readable(path):
        if not path.is_dir() or weight_sets(path):
            return path
        folders = folders_with_weights(path)
    usual = _FOLDERS[component.role]
    for folder in sorted(folders, key=lambda f: (not f.name.startswith(usual), f.name)):
        with open_weights(folder) as weights:
            if _recognised(component, weights) is not None:
                return folder
    if folders:
        names = ", ".join(f"{f.name}/" for f in folders)
        raise CheckpointError(
            f"No subfolder of {path} holds a {component.name}; there are weights in {names}.",
            fix=f"Give --{component.option} the file or folder of the {component.name} itself.",
        )
    return path


def examine(
    component: Component, weights: Weights, *, others: Iterable[Component] = ()
) -> Inspection:
    """`inspect` for a checkpoint that is open."""
    dialect = next((d for d in component.dialects if d.recognises(weights.names)), None)
    if dialect is None:
        raise CheckpointError(
            f"{weights.path} is not {_whose(component)}{component.name}: {_misfit(component, weights)}."
            f"{_instead(component, weights, others)}",
            fix=f"Give --{component.option} another file.",
        )
    try:
        return _read_as(component, dialect, weights)
    except CheckpointError as error:
        raise CheckpointError(
            f"{weights.path}: {error.what}{_instead(component, weights, others)}", fix=error.fix
        ) from error


def _read_as(component: Component, dialect: KeyMap, weights: Weights) -> Inspection:
    if _stranger(component, weights):
        raise CheckpointError(
            f"This is not {_whose(component)}{component.name}.",
            fix=f"Give --{component.option} another file.",
        )
    names, scales = split_scales(weights.names)
    sources = dialect.reading(names)
    shapes = {ours: _shape(ours, source, weights) for ours, source in sources.items()}
    return Inspection(
        path=weights.path,
        dialect=dialect,
        numbers=_numbers(component, shapes, weights.path),
        sources=sources,
        shapes=shapes,
        dtypes={ours: weights.dtypes[source.names[0]] for ours, source in sources.items()},
        scales=scales,
    )


def _numbers(
    component: Component, shapes: Mapping[str, tuple[int, ...]], path: Path
) -> Mapping[str, Any]:
    if not component.reads_config:
        return component.infer(shapes)
    place = (path if path.is_dir() else path.parent) / "config.json"
    try:
        config = parse_json(read_text(place))
    except FileNotFoundError:
        config = None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{place} beside it cannot be read: {line_of(error)}",
            fix="Fetch config.json again from where the weights were published.",
        ) from error
    return component.infer(shapes, config if isinstance(config, dict) else None)


def _shape(ours: str, source: TensorSource, weights: Weights) -> tuple[int, ...]:
    parts = [tuple(weights.shapes[name]) for name in source.names]
    if source.operation == "squeeze":
        n = source.ones
        gone, kept = parts[0][-n:], parts[0][:-n]
        if source.leading:
            gone, kept = parts[0][:n], parts[0][n:]
        if gone != (1,) * n:
            raise CheckpointError(
                f"{source.names[0]!r} has the shape {parts[0]}, which does not "
                f"{'begin with' if source.leading else 'end in'} {n} times 1.",
                fix="The file is damaged or of another model; download it again.",
            )
        return kept
    if source.operation != "concat":
        return parts[0]
    if any(p[1:] != parts[0][1:] or not p for p in parts):
        raise CheckpointError(
            f"{ours!r} is made of tensors of the shapes {', '.join(map(str, parts))}, which do not join.",
            fix="The file is damaged or of another model; download it again.",
        )
    return (sum(p[0] for p in parts), *parts[0][1:])


def _recognised(component: Component, weights: Weights) -> Inspection | None:
    for dialect in component.dialects:
        if dialect.recognises(weights.names):
            try:
                return _read_as(component, dialect, weights)
            except CheckpointError:
                return None
    return None


def _misfit(component: Component, weights: Weights) -> str:
    nearest = min(component.dialects, key=lambda d: len(d.lacking(weights.names)) / len(d.marker))
    lacking = nearest.lacking(weights.names)
    if len(lacking) < len(nearest.marker):
        return f"the {nearest.name} layout fits it best, of which it lacks {lacking[0]!r}"
    layouts = ", ".join(d.name for d in component.dialects)
    examples = ", ".join(repr(name) for name in weights.names[:3])
    return f"none of the layouts ({layouts}) fits the {counted(len(weights.names), 'tensor')}, such as {examples}"


def _whose(component: Component) -> str:
    for name in registry.names():
        with contextlib.suppress(ConfigError):  # a broken plugin must not hide the real error
            architecture = registry.find(name)
            if component in architecture.components:
                return f"{architecture.title}'s "
    return "a "


def _instead(component: Component, weights: Weights, others: Iterable[Component]) -> str:
    """A sentence for what the file seems to be, when something that is installed knows."""
    if any(name.endswith((".lora_down.weight", ".lora_A.weight")) for name in weights.names):
        return " It is a LoRA, not a model."
    for other, place in _candidates(others):
        if other != component and _recognised(other, weights) is not None:
            return f" It seems to be {place}."
    stranger = _stranger(component, weights)
    return f" It looks like {stranger}." if stranger else ""


def _stranger(component: Component, weights: Weights) -> str:
    """What a file is that has a tensor of another kind of file, whatever its names begin with."""
    found = (
        what
        for known, what in component.foreign_keys.items()
        if any(name == known or name.endswith(f".{known}") for name in weights.names)
    )
    return next(found, "")


def _candidates(others: Iterable[Component]) -> Iterator[tuple[Component, str]]:
    for candidate in others:
        yield candidate, f"the {candidate.name}, which --{candidate.option} takes"
    for name in registry.names():
        try:
            architecture = registry.find(name)
        except ConfigError:  # a broken plugin must not hide the real error
            continue
        for candidate in architecture.components:
            place = f"the {candidate.name} of {architecture.title}"
            yield candidate, f"{place}, which --{candidate.option} takes with --arch {name}"
