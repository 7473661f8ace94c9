"""From the names in a LoRA file to the layers of a network, whatever layout they are written in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from torch import nn

from musubi import registry
from musubi.errors import ConfigError
from musubi.plugin import Architecture, Component, Source
from musubi.weights.blank import blank

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
KOHYA = "lora_unet_"


def known_layers(component: Component, variants: Iterable[Mapping] = ()) -> frozenset[str]:
    """Dotted names of the linear layers of a component at its toy size and at given sizes."""
    found: set[str] = set()
    for numbers in (component.tiny, *variants):
        if numbers:
            found |= _built(component, tuple(sorted(numbers.items(), key=lambda i: i[0])))
    return frozenset(found)


def table(
    component: Component | None, layers: Iterable[str], numbers: Iterable[int] | None = None
) -> dict[str, tuple[str, Source]]:
    """Every way to write a layer → our name and how their part of it is made from ours.

    Args:
        component: Its dialects give other names; None knows ours only.
        layers: Our dotted names.
        numbers: Blocks that the network may have; None: exactly those among `layers`.
    """
    names = set(layers)
    if numbers is not None and component is not None:
        names = _numbered(names, component.traits.stacks, list(numbers))
    found: dict[str, tuple[str, Source]] = {}
    ordered = [n for n in sorted(names) if n]
    for name in ordered:
        _add(found, name, name, Source(names=(f"{name}.weight",)))
    for dialect in component.dialects if component is not None else ():
        for theirs, source in dialect.writing(f"{name}.weight" for name in ordered).items():
            stem = theirs.removeprefix(dialect.prefix).removesuffix(".weight")
            _add(found, stem, source.names[0].removesuffix(".weight"), source)
    return found


def known(
    architecture: Architecture, stems: Iterable[str], model_names: Iterable[str] | None = None
) -> dict[str, tuple[str, Source]]:
    """`table` of an architecture's network, for the names in a file.

    Args:
        architecture: Whose.
        stems: The names, which say what blocks there may be.
        model_names: Dotted names of the network's modules, when it is at hand.
    """
    component = architecture.dit
    if model_names is not None:
        return table(component, model_names)
    stems = list(stems)
    blocks = {int(n) for stem in stems for n in re.findall(r"(?<=[._])\d+(?=[._]|$)", stem)}
    found = table(component, known_layers(component), blocks)
    if all(lookup(found, stem) is not None for stem in stems):
        return found  # laying out the full sizes takes a second, and is needed for few files
    sizes = [v.numbers for v in architecture.variants]
    return table(component, known_layers(component, sizes), blocks)


def recognised(stems: Iterable[str], apart: Architecture | None = None) -> str | None:
    """The installed architecture, other than `apart`, that has most of the names in a file."""
    stems = list(stems)
    for name in registry.names():
        if apart is not None and name == apart.name:
            continue
        try:
            found = known(registry.find(name), stems)
        except ConfigError:  # a broken plugin must not hide the real error
            continue
        if 2 * sum(lookup(found, stem) is not None for stem in stems) >= len(stems):
            return name
    return None


def underscored(name: str) -> str:
    """The name as kohya's form writes it, without its prefix."""
    return name.replace(".", "_")


def lookup(found: Mapping[str, tuple[str, Source]], stem: str) -> tuple[str, Source] | None:
    """What a name in a file stands for, its prefix stripped."""
    if stem.startswith(KOHYA):
        return found.get(underscored(stem.removeprefix(KOHYA)))
    for prefix in PREFIXES:
        stem = stem.removeprefix(prefix)
    return found.get(stem)


def _add(found: dict[str, tuple[str, Source]], theirs: str, ours: str, source: Source) -> None:
    found.setdefault(theirs, (ours, source))
    found.setdefault(underscored(theirs), (ours, source))


def _numbered(names: set[str], stacks: Iterable[str], numbers: list[int]) -> set[str]:
    out = set(names)
    for stack in stacks:
        pattern = re.compile(re.escape(stack) + r"\.\d+(\..+)")
        tails = {m[1] for m in map(pattern.fullmatch, names) if m}
        out |= {f"{stack}.{n}{tail}" for tail in tails for n in numbers}
    return out


@lru_cache(maxsize=32)
def _cached(build: Callable[..., nn.Module], numbers: tuple) -> frozenset[str]:
    with blank():
        module: nn.Module = build(**dict(numbers))
    return frozenset(n for n, m in module.named_modules() if isinstance(m, nn.Linear))


def _built(component: Component, numbers: tuple) -> frozenset[str]:
    try:
        return _cached(component.build, numbers)
    except TypeError:  # numbers that cannot be hashed
        return _cached.__wrapped__(component.build, numbers)
