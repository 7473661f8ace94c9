"""From the names in a LoRA file to the tensors of a network, whatever layout they are written in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from torch import nn

from musubi import registry
from musubi.errors import ConfigError
from musubi.plugin import Architecture, Component, KeyMap, TensorSource
from musubi.weights.meta import meta_device

KOHYA = "lora_unet_"
PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "pipe.dit.",
    "dit.",
    "unet.",
)
"""What stands before a dotted name."""
JOINED = ("lora_unet__", KOHYA, "lora_transformer_", "lycoris_")
"""What stands before a name whose dots are underscores: of kohya, of the Fun LoRAs, of OneTrainer, of
SimpleTuner."""
WEIGHT = ".weight"
Found = tuple[str, TensorSource]
"""(our parameter's name, how their part of it is made from ours)."""


def known_parameters(
    component: Component, variants: Iterable[Mapping] = (), *, linear: bool = False
) -> frozenset[str]:
    """Names of the parameters of a component at its toy size and at given sizes.

    Args:
        component: The network.
        variants: The sizes, beside the toy's.
        linear: Only the weights of linear layers.
    """
    found: set[str] = set()
    for numbers in (component.tiny, *variants):
        if numbers:
            made = _built(component, tuple(sorted(numbers.items(), key=lambda i: i[0])))
            found |= {name for name, is_linear in made.items() if is_linear or not linear}
    return frozenset(found)


def table(
    component: Component | None, parameters: Iterable[str], numbers: Iterable[int] | None = None
) -> dict[str, Found]:
    """Every way to write a layer, or a tensor that is no layer's weight → what it is here.

    Args:
        component: Its dialects give other names; None knows ours only.
        parameters: Our names; biases follow from their weights.
        numbers: Blocks that the network may have; None: exactly those among `parameters`. Then what
            the dialects name counts too: a published relative may have what none of these has.
    """
    names = set(parameters)
    dialects = component.dialects if component is not None else ()
    if numbers is not None and component is not None:
        numbers = sorted(set(numbers))
        names = _numbered(names, component.traits.stacks, numbers)
        for dialect in dialects:
            names |= _named_by(dialect, numbers)
    found: dict[str, Found] = {}
    ordered = [n for n in sorted(names) if n and not n.endswith(".bias")]
    for name in ordered:
        _add(found, name, name, TensorSource(names=(name,)))
    for dialect in dialects:
        for theirs, source in dialect.writing(ordered).items():
            _add(found, theirs.removeprefix(dialect.prefix), source.names[0], source)
            if source.operation == "split":  # the parts by number, as the OMI form names them
                stem = source.names[0].removesuffix(WEIGHT)
                _add(found, f"{stem}.{source.part}", source.names[0], source)
    return found


def known(
    architecture: Architecture, stems: Iterable[str], parameters: Iterable[str] | None = None
) -> dict[str, Found]:
    """`table` of an architecture's network, for the stems in a file.

    Args:
        architecture: Whose.
        stems: They say what blocks there may be.
        parameters: Names of the network's parameters, when it is at hand.
    """
    component = architecture.dit
    if parameters is not None:
        return table(component, parameters)
    stems = list(stems)
    blocks = {int(n) for stem in stems for n in re.findall(r"(?<=[._])\d+(?=[._]|$)", stem)}
    found = table(component, known_parameters(component), blocks)
    if all(lookup(found, stem) is not None for stem in stems):
        return found  # laying out the full sizes takes a second, and is needed for few files
    sizes = [v.numbers for v in architecture.variants]
    return table(component, known_parameters(component, sizes), blocks)


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


def fitting(stems: Iterable[str]) -> list[str]:
    """The installed architectures that have most of the names in a file; several have as many."""
    stems = list(stems)
    counts: dict[str, int] = {}
    for name in registry.names():
        try:
            found = known(registry.find(name), stems)
        except ConfigError:  # a broken plugin must not hide the real error
            continue
        counts[name] = sum(lookup(found, stem) is not None for stem in stems)
    most = max(counts.values(), default=0)
    return [name for name, count in counts.items() if count == most and 2 * count >= len(stems)]


def underscored(name: str) -> str:
    """The name as kohya's form writes it, without its prefix."""
    return name.replace(".", "_")


def lookup(found: Mapping[str, Found], stem: str) -> Found | None:
    """What a stem in a file stands for, its prefix stripped."""
    bare = bare_of(stem)
    hit = found.get(bare)
    if hit is None and re.search(r"fc0$", bare):  # the first layer of an MLP, in the OMI form
        hit = found.get(f"{bare[:-1]}1")
    return hit


def bare_of(stem: str) -> str:
    """A stem without the prefix of its form."""
    for prefix in JOINED:
        if stem.startswith(prefix):
            return underscored(stem.removeprefix(prefix))
    for prefix in PREFIXES:
        stem = stem.removeprefix(prefix)
    return stem


def bias_of(parameter: str) -> str | None:
    """The bias beside a weight; None when it is no weight."""
    stem = parameter.removesuffix(WEIGHT)
    return None if stem == parameter else f"{stem}.bias"


def _add(found: dict[str, Found], theirs: str, ours: str, source: TensorSource) -> None:
    theirs = theirs.removesuffix(WEIGHT)
    found.setdefault(theirs, (ours, source))
    found.setdefault(underscored(theirs), (ours, source))


def _numbered(names: set[str], stacks: Iterable[str], numbers: list[int]) -> set[str]:
    out = set(names)
    for stack in stacks:
        pattern = re.compile(re.escape(stack) + r"\.\d+(\..+)")
        tails = {m[1] for m in map(pattern.fullmatch, names) if m}
        out |= {f"{stack}.{n}{tail}" for tail in tails for n in numbers}
    return out


def _named_by(dialect: KeyMap, numbers: list[int]) -> set[str]:
    """Our names that a dialect's rules spell out, in blocks of these numbers."""
    found = set()
    for rule in dialect.rules:
        fields = [f for f in re.findall(r"\{(\w+)\}", rule.ours) if f != "rest"]
        if rule.ours == "{rest}" or len(set(fields)) > 1:
            continue
        for values in itertools.product(numbers, repeat=len(set(fields))):
            filled = dict(zip(dict.fromkeys(fields), values, strict=True))
            found.add(rule.ours.format(**filled, rest="weight"))
    return found


@lru_cache(maxsize=32)
def _cached(build: Callable[..., nn.Module], numbers: tuple) -> Mapping[str, bool]:
    with meta_device():
        module: nn.Module = build(**dict(numbers))
    linear = {f"{n}{WEIGHT}" for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    return {name: name in linear for name, _ in module.named_parameters()}


def _built(component: Component, numbers: tuple) -> Mapping[str, bool]:
    """Name of each parameter → whether it is the weight of a linear layer."""
    try:
        return _cached(component.build, numbers)
    except TypeError:  # numbers that cannot be hashed
        return _cached.__wrapped__(component.build, numbers)
