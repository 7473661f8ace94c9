"""From the stems of an adapter file to our parameters: found, put together, and measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from musubi.errors import CheckpointError
from musubi.lora.delta import Delta, Difference, stacked
from musubi.lora.names import JOINED, WEIGHT, Found, bias_of, lookup
from musubi.plugin import TensorSource

Shapes = Mapping[str, "tuple[int, ...] | None"]


def layer_of(name: str) -> str:
    """A parameter's name without the word weight or bias.

    >>> layer_of("blocks.0.ffn.0.bias")
    'blocks.0.ffn.0'
    """
    return name.removesuffix(WEIGHT).removesuffix(".bias")


def match(found: Mapping[str, Found], stem: str) -> Found | None:
    """What a stem belongs to, whatever its tensors change."""
    return lookup(found, stem) or placed(found, stem, "bias") or placed(found, stem, "modulation")


def placed(found: Mapping[str, Found], stem: str, place: str) -> Found | None:
    """Our parameter for a place of a stem."""
    if place == "modulation":
        joint = "_" if stem.startswith(JOINED) else "."
        return lookup(found, f"{stem}{joint}modulation")
    hit = lookup(found, stem)
    if hit is None and place == "weight" and stem.endswith((".bias", "_bias")):
        hit, place = lookup(found, stem[: -len(".bias")]), "bias"
    if hit is None or place == "weight":
        return hit
    bias = bias_of(hit[0])
    return None if bias is None else (bias, hit[1])


def names_of(fields: Mapping[str, str], place: str) -> list[str]:
    """The names in the file of what changes a place: "weight", "bias" or "modulation"."""
    of = {"bias": ("diff_b", "b_norm", "up_bias"), "modulation": ("diff_m",)}
    elsewhere = {f for fields in of.values() for f in fields}
    if place in of:
        return [n for f, n in fields.items() if f in of[place]]
    return [n for f, n in fields.items() if f not in elsewhere]


def joined(path: Path, hits: Iterable[tuple[str, Found, Delta]]) -> dict[str, Delta]:
    """Our names → changes; the parts of a fused layer are put together."""
    out: dict[str, Delta] = {}
    parts: dict[str, dict[int, Delta]] = defaultdict(dict)
    ratios: dict[str, tuple[int, ...]] = {}
    for stem, (ours, source), delta in hits:
        if source.operation == "split":
            clash = source.part in parts[ours]
            parts[ours][source.part] = delta
            ratios[ours] = source.ratio
        else:
            clash = ours in out
            out[ours] = _ours(path, stem, delta, source)
        if clash or (ours in out and ours in parts):
            raise CheckpointError(
                f"{path} has {layer_of(ours)!r} twice, once as {stem!r}.",
                fix="The file mixes two layouts.",
            )
    out.update({ours: _fused(path, ours, parts[ours], ratios[ours]) for ours in parts})
    return out


def _ours(path: Path, stem: str, delta: Delta, source: TensorSource) -> Delta:
    made: Delta | None = delta
    if source.operation == "swap":
        made = delta.turned()
    elif source.operation == "unsqueeze" and isinstance(delta, Difference):
        shape = delta.value.shape
        kept = shape[source.ones :] if source.leading else shape[: -source.ones]
        made = Difference(delta.value.reshape(kept))
    if made is None:
        raise CheckpointError(
            f"{path}: the {delta.title} of {stem!r} cannot be turned into the layer that is here.",
            fix="Convert it with the program that made it, or give another form.",
        )
    return made


def _fused(path: Path, ours: str, parts: Mapping[int, Delta], ratio: tuple[int, ...]) -> Delta:
    first = next(iter(parts.values()))
    known = next(((i, p.outputs) for i, p in parts.items() if p.outputs), None)
    if known is None:
        raise CheckpointError(
            f"{path}: how many rows each part of {layer_of(ours)!r} has is not in the file.",
            fix=f"Merge the {first.title} with the program that made it.",
        )
    unit = known[1] // ratio[known[0]]
    if any(p.outputs not in (None, unit * ratio[i]) for i, p in parts.items()):
        raise CheckpointError(
            f"{path}: the parts of {layer_of(ours)!r} have sizes that do not join.",
            fix="The file is damaged or of another model.",
        )
    return stacked([parts.get(i) for i in range(len(ratio))], [unit * r for r in ratio])


def check_sizes(path: Path, deltas: Mapping[str, Delta], shapes: Shapes) -> None:
    """Compare what each change needs with the network's shapes.

    Raises:
        CheckpointError: One does not fit; it names the file.
    """
    for name, delta in deltas.items():
        shape = shapes.get(name)
        if shape is not None and not delta.fits(tuple(shape)):
            raise CheckpointError(
                f"{path} is of another size: its {delta.title} of {layer_of(name)!r} is for "
                f"{delta.size()}, and the checkpoint has {tuple(shape)}.",
                fix="Give a LoRA of this model's size, or the checkpoint it was made for.",
            )
