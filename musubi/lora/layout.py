"""Adapters laid out as files: three forms of names, each for every kind that it has words for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from musubi.errors import CheckpointError, ConfigError, did_you_mean
from musubi.lora import metadata as facts
from musubi.lora.delta import Delta, Difference, Pair, Replacement, Stacked
from musubi.lora.keys import written
from musubi.lora.kinds import Decomposed, Hada, InputRotation, Kron, Rotation
from musubi.lora.names import KOHYA, WEIGHT, underscored
from musubi.lora.programs import is_native
from musubi.plugin import Component, KeyMap, TensorSource
from musubi.weights.write import save

FORMS = ("kohya", "comfy", "diffusers")
ALIASES = {"diffusion_model": "comfy", "default": "kohya", "other": "comfy"}
_OF_WEIGHTS = (Pair, Hada, Kron, Decomposed, Rotation, InputRotation)
_BIAS = ".bias"


class NoWordsError(CheckpointError):
    """A form of names has no words for what an adapter does to a layer."""


def write_lora(
    path: Path | str,
    deltas: Mapping[str, Delta | tuple],
    *,
    form: str = "kohya",
    dtype: torch.dtype = torch.bfloat16,
    metadata: Mapping[str, str] | None = None,
    component: Component | None = None,
) -> None:
    """Write an adapter file, with model-spec keys and hashes added to its metadata.

    Args:
        path: The file; an existing one is replaced only by a complete one.
        deltas: Our name of a parameter, or of the layer whose weight it is, → its change.
        form: "kohya" (alpha kept), "comfy" (`diffusion_model.`, also called "diffusion_model"; alpha
            of pairs folded into B), or "diffusers" (the names of diffusers, alpha folded in).
        dtype: Dtype of the file.
        metadata: Text for the header.
        component: The network; its "diffusers" dialect gives the names of that form.

    Raises:
        ConfigError: The form is unknown.
        CheckpointError: A number is not finite in the file's dtype.
        NoWordsError: The form cannot say what one of the changes is.
    """
    tensors = laid_out(deltas, form, component)
    cast: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        cast[name] = tensor.detach().to("cpu", dtype).contiguous()
        if name.endswith(".alpha") and float(cast[name]) != float(tensor):
            cast[name] = tensor.float()  # 16 bits do not hold every rank
        if not torch.isfinite(cast[name].float()).all():
            raise CheckpointError(
                f"{name!r} holds a number that is not finite as {dtype}; {path} was not written.",
                fix="Save as bf16 or fp32, or go back to an earlier checkpoint.",
            )
    save(Path(path), cast, facts.with_hashes(cast, facts.with_modelspec(metadata or {})))


def by_parameter(deltas: Mapping[str, Delta | tuple]) -> dict[str, Delta]:
    """The changes by the name of what they change: a layer's name stands for its weight."""
    found: dict[str, Delta] = {}
    for name, delta in deltas.items():
        delta = delta if isinstance(delta, Delta) else Pair(*delta)
        if isinstance(delta, (*_OF_WEIGHTS, Stacked)) and not name.endswith(WEIGHT):
            name += WEIGHT
        found[name] = delta
    return found


def laid_out(
    deltas: Mapping[str, Delta | tuple], form: str = "kohya", component: Component | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of a file of that form, not yet cast.

    Raises:
        ConfigError: The form is unknown, or the network has no names of that kind.
        NoWordsError: The form cannot say what one of the changes is.
    """
    form = ALIASES.get(form, form)
    if form not in FORMS:
        raise ConfigError(
            f"There is no form {form!r} of LoRA files.", fix=did_you_mean(form, FORMS)
        )
    named = by_parameter(deltas)
    if form == "diffusers":
        return _diffusers(named, component)
    out: dict[str, torch.Tensor] = {}
    for parameter, delta in named.items():
        stem, place = _split(parameter)
        words = _words(parameter, place, delta)
        if form == "comfy":
            stem = f"diffusion_model.{stem}"
            words = _with_letters(words, delta)
        else:
            stem = KOHYA + underscored(stem)
        out |= {f"{stem}.{word}": tensor.clone() for word, tensor in words.items()}
    return out


def _split(parameter: str) -> tuple[str, str]:
    for ending, place in ((WEIGHT, "weight"), (_BIAS, "bias")):
        if parameter.endswith(ending):
            return parameter.removesuffix(ending), place
    return parameter, "tensor"


def _words(parameter: str, place: str, delta: Delta) -> dict[str, torch.Tensor]:
    try:
        return written(place, delta)
    except TypeError:
        raise NoWordsError(
            f"{parameter!r} is changed by {delta.title}, for which this form of LoRA files has no "
            "words.",
            fix="Write the form it came in, or make plain pairs of it: `musubi lora resize`.",
        ) from None


def _with_letters(words: dict[str, torch.Tensor], delta: Delta) -> dict[str, torch.Tensor]:
    """A pair as A and B with alpha folded in, where its kind allows it."""
    pair = delta.inner if isinstance(delta, Decomposed) else delta
    if not isinstance(pair, Pair) or pair.mid is not None:
        return words
    folded = pair.folded()
    rest = {w: t for w, t in words.items() if w == "dora_scale"}
    return {"lora_A.weight": folded.down, "lora_B.weight": folded.up, **rest}


def _diffusers(named: Mapping[str, Delta], component: Component | None) -> dict[str, torch.Tensor]:
    dialects = component.dialects if component is not None else ()
    dialect = next((d for d in dialects if d.name == "diffusers"), None)
    if dialect is None and component is not None and is_native(component):
        dialect = KeyMap(name="diffusers", marker=())
    if dialect is None:
        raise ConfigError(
            "This network has no names in diffusers.", fix="Write the form comfy or kohya."
        )
    pairs = {p for p, d in named.items() if isinstance(d, (Pair, Decomposed))}
    out: dict[str, torch.Tensor] = {}
    for theirs, source in dialect.writing(named).items():
        ours = source.names[0]
        part = part_of(named[ours], source)
        stem, place = _split(theirs.removeprefix(dialect.prefix))
        pair = part.inner if isinstance(part, Decomposed) else part
        if (
            place == "bias"
            and isinstance(part, Difference)
            and f"{_split(ours)[0]}{WEIGHT}" in pairs
        ):
            out[f"transformer.{stem}.lora_B.bias"] = part.value.float()
            continue
        if place != "weight" or not isinstance(pair, Pair) or pair.mid is not None:
            raise NoWordsError(
                f"{ours!r} is changed by a {named[ours].title}, and diffusers reads low-rank pairs "
                "alone.",
                fix="Write the form comfy or kohya, or make pairs of it: `musubi lora resize`.",
            )
        folded = pair.folded()
        out[f"transformer.{stem}.lora_A.weight"] = folded.down.clone()
        out[f"transformer.{stem}.lora_B.weight"] = folded.up
        if isinstance(part, Decomposed):
            if part.by_column:
                raise NoWordsError(
                    f"The magnitudes of {ours!r} are of its columns, and diffusers' are of rows.",
                    fix="Write the form comfy or kohya.",
                )
            out[f"transformer.{stem}.lora_magnitude_vector"] = part.magnitude.float().flatten()
    return out


def part_of(delta: Delta, source: TensorSource) -> Delta:
    """The change of their tensor, which is made of ours.

    Raises:
        NoWordsError: The change does not come apart.
    """
    part: Delta | None = delta
    if source.operation == "swap":
        part = delta.turned()
    elif source.operation == "split":
        rows = delta.outputs or 0
        unit = rows // sum(source.ratio)
        start = unit * sum(source.ratio[: source.part])
        part = delta.rows(start, start + unit * source.ratio[source.part])
    elif source.operation == "unsqueeze" and isinstance(delta, (Difference, Replacement)):
        ones = (None,) * source.ones
        value = delta.value[(*ones, ...) if source.leading else (..., *ones)]
        part = dataclasses.replace(delta, value=value)
    if part is None:
        raise NoWordsError(
            f"The {delta.title} of {source.names[0]!r} cannot be taken apart into the layers that "
            "diffusers has in its place.",
            fix="Write the form comfy or kohya, or make pairs of it: `musubi lora resize`.",
        )
    return part
