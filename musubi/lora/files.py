"""Adapter files: every common form in. What is written is in `layout`."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from musubi import registry
from musubi.errors import CheckpointError, ConfigError, counted, line_of
from musubi.lora.delta import Delta, Difference, Pair, StoredDifference
from musubi.lora.keys import assembled, grouped
from musubi.lora.kinds import Decomposed, InputRotation
from musubi.lora.layout import ALIASES, FORMS, NoWordsError, laid_out, part_of, write_lora
from musubi.lora.names import (
    JOINED,
    KOHYA,
    WEIGHT,
    Found,
    bare_of,
    fitting,
    known,
    recognised,
    underscored,
)
from musubi.lora.patterns import compiled
from musubi.lora.peft import config_of
from musubi.lora.placing import (
    Shapes,
    check_sizes,
    joined,
    layer_of,
    match,
    names_of,
    placed,
)
from musubi.plugin import Architecture
from musubi.weights.files import Weights, open_weights

__all__ = [
    "ALIASES",
    "FORMS",
    "LoraFile",
    "NoWordsError",
    "architecture_of",
    "keep_apart",
    "laid_out",
    "read_lora",
    "write_lora",
]
_SHOWN = 3
_LARGE = 1 << 22  # numbers of a difference that is left in its file until it is used
# Of what is no part of the network that is adapted.
_TEXT = ("lora_te", "text_encoder", "text_encoders", "lora_te1", "lora_te2", "clip_l", "llama")


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """An adapter that was read.

    Args:
        path: The file or folder.
        deltas: Our name of a parameter → its change; the stems of the file without an architecture.
        metadata: Metadata of the file.
        form: "kohya", "comfy" (`diffusion_model.` or bare names) or "diffusers".
        unknown: Names in the file that mean nothing to this version.
        notes: Lines that the user should see.
        strengths: Our name → a factor of its change, where that is not 1.
    """

    path: Path
    deltas: Mapping[str, Delta]
    metadata: Mapping[str, str]
    form: str
    unknown: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    strengths: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def pairs(self) -> dict[str, Pair]:
        """The low-rank pairs, by the dotted name of their layer."""
        return {
            name.removesuffix(WEIGHT): delta
            for name, delta in self.deltas.items()
            if isinstance(delta, Pair)
        }

    @property
    def layers(self) -> tuple[str, ...]:
        """What is changed, without the words weight and bias."""
        return tuple(dict.fromkeys(layer_of(name) for name in self.deltas))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its changes, the most frequent first."""
        count: dict[str, int] = defaultdict(int)
        for delta in self.deltas.values():
            count[delta.title] += 1
        return tuple(sorted(count, key=lambda title: -count[title]))

    def complaint(self) -> str | None:
        """One sentence about what was not understood, or None."""
        if not self.unknown:
            return None
        some = ", ".join(self.unknown[:_SHOWN])
        text = [n for n in self.unknown if n.startswith(_TEXT)]
        what = "of a text encoder" if len(text) == len(self.unknown) else "that match no layer"
        return (
            f"{self.path}: {counted(len(self.unknown), 'tensor')} {what} not used, such as {some}."
        )

    def selected(self, include: str | None = None, exclude: str | None = None) -> LoraFile:
        """Only the layers that `include` matches, without those that `exclude` matches.

        A pattern matches a layer as in training, by its whole dotted name, or as older tools search
        when generating, anywhere in its kohya key.
        """
        (wanted,), (dropped,) = compiled([include or ""]), compiled([exclude or r"(?!)"])

        def stays(name: str) -> bool:
            layer = layer_of(name)
            key = f"{KOHYA}{underscored(layer)}.lora_down.weight"
            taken, left = (p.search(key) or p.fullmatch(layer) for p in (wanted, dropped))
            return bool(taken) and not left

        return replace(self, deltas={n: delta for n, delta in self.deltas.items() if stays(n)})

    def sparing(self, patterns: Iterable[str]) -> LoraFile:
        """Without the layers whose whole dotted name one of these patterns matches."""
        spared = compiled(patterns)
        kept = {
            name: delta
            for name, delta in self.deltas.items()
            if not any(pattern.fullmatch(layer_of(name)) for pattern in spared)
        }
        return replace(self, deltas=kept)


def read_lora(
    path: Path | str,
    architecture: Architecture | None = None,
    shapes: Shapes | None = None,
    *,
    finite: bool = True,
) -> LoraFile:
    """Read an adapter of any common form.

    Args:
        path: The file, or a folder as peft writes it.
        architecture: The architecture that the file is for; None keeps the names of the file.
        shapes: Names of the network's parameters and their shapes, when they are at hand; a shape
            of None is not looked at.
        finite: Refuse numbers that are not finite.

    Raises:
        CheckpointError: It is no adapter, of another architecture or size, incomplete, or holds a
            number that is not finite.
    """
    path = Path(path)
    with open_weights(path) as weights:
        groups, stray = grouped(path, weights.names)
        info = dict(weights.metadata)
        pieces = _pieces(path, weights, groups, info, finite)
    notes = _notes(path, weights, groups, info)
    if architecture is None:
        plain = {
            stem if place == "weight" else f"{stem} ({place})": delta
            for stem, place, delta in pieces
        }
        return LoraFile(
            path=path, deltas=plain, metadata=info, form=_form(groups, {}), unknown=tuple(stray)
        )
    found = known(architecture, _looked_up(groups), shapes)
    matched = {stem: match(found, stem) for stem in groups}
    if 2 * sum(hit is not None for hit in matched.values()) < len(matched):
        relative = _of_a_relative(path, architecture, groups, info, shapes)
        if relative is not None:
            return relative
    _refuse_others(path, architecture, matched, info)
    hits: list[tuple[str, Found, Delta]] = []
    for stem, place, delta in pieces:
        hit = placed(found, stem, place)
        if hit is None or (shapes is not None and hit[0] not in shapes):
            stray += names_of(groups[stem], place)
        else:
            hits.append((stem, hit, delta))
    deltas = joined(path, hits)
    check_sizes(path, deltas, shapes or {})
    return LoraFile(
        path=path,
        deltas=deltas,
        metadata=info,
        form=_form(groups, {stem: hit for stem, hit, _ in hits}),
        unknown=tuple(dict.fromkeys(stray)),
        notes=notes,
    )


def architecture_of(path: Path | str, name: str | None = None) -> Architecture:
    """Whose layers a LoRA file is for: the one of that name, else as its metadata or its names tell.

    Raises:
        CheckpointError: It is no LoRA.
        ConfigError: The architecture is not installed, or nothing tells it.
    """
    if name is None:
        with open_weights(path) as weights:
            groups, _ = grouped(Path(path), weights.names)
            name = weights.metadata.get("ss_base_model_version")
            fit = [] if name else fitting(_looked_up(groups))
        if len(fit) > 1:
            raise ConfigError(
                f"The names in {path} are those of {' and of '.join(fit)}, and no metadata tells which "
                "model it is for.",
                fix=f"Add {' or '.join(f'--arch {one}' for one in fit)}.",
            )
        name = name or next(iter(fit), None)
    if name is None:
        raise ConfigError(
            f"Neither the metadata nor the names in {path} tell what model it is for.",
            fix=f"Add --arch and one of {', '.join(registry.names())}.",
        )
    return registry.find(name)


def keep_apart(target: Path | str, sources: Iterable[Path | str]) -> Path:
    """The file to write, once it is known to be none of those that are read.

    Raises:
        ConfigError: It is one of them.
    """
    target = Path(target)
    for source in sources:
        if target.exists() and Path(source).exists() and target.samefile(source):
            raise ConfigError(f"{target} is also read.", fix="Write to another file.")
    return target


def _pieces(
    path: Path,
    weights: Weights,
    groups: Mapping[str, Mapping[str, str]],
    info: Mapping[str, str],
    finite: bool,
) -> list[tuple[str, str, Delta]]:
    config = config_of(path, weights.names, info)

    def read(name: str) -> torch.Tensor:
        tensor = weights.read(name)
        # Other files are mapped, and end with the block that opened them.
        return tensor if path.suffix == ".safetensors" else tensor.clone()

    pieces = []
    for stem, fields in groups.items():
        try:
            for place, delta in assembled(stem, fields, read, config):
                _check(path, stem, delta, finite)
                if isinstance(delta, Difference) and delta.value.numel() >= _LARGE:
                    name = fields["diff"] if "diff" in fields else fields["w_norm"]
                    delta = StoredDifference(partial(_again, path, name), tuple(delta.value.shape))
                pieces.append((stem, place, delta))
        except (ValueError, ZeroDivisionError, IndexError, RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"{path}: the tensors of {stem!r} cannot be understood ({line_of(error)}).",
                fix="The file is damaged; download or train it again.",
            ) from error
    return pieces


def _again(path: Path, name: str) -> torch.Tensor:
    with open_weights(path) as weights:
        return weights.read(name).clone()


def _check(path: Path, stem: str, delta: Delta, finite: bool) -> None:
    inner = delta.inner if isinstance(delta, Decomposed) else delta
    if isinstance(inner, Pair):
        down, up = inner.down, inner.up
        if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
            raise CheckpointError(
                f"{path}: the matrices of {stem!r} are {tuple(down.shape)} and "
                f"{tuple(up.shape)}, which is no pair for a layer.",
                fix="The file is damaged; download or train it again.",
            )
    if getattr(inner, "rank", None) == 0:
        raise CheckpointError(
            f"{path}: {stem!r} has the rank 0.",
            fix="The file is damaged; download or train it again.",
        )
    alpha = getattr(inner, "alpha", None)
    numbers = [*delta.tensors().values(), torch.tensor(float(alpha or 0))]
    if finite and not all(bool(torch.isfinite(t.float()).all()) for t in numbers):
        raise CheckpointError(
            f"{path}: {stem!r} holds a number that is not finite.",
            fix="The file is damaged or its training failed; use an earlier checkpoint.",
        )
    try:
        if isinstance(delta, InputRotation) and delta.generator.ndim != 2:
            raise RuntimeError
        delta.size()
        if not isinstance(delta, (Pair, Difference)) and delta.linear and inner is delta:
            delta.mapped(lambda t: torch.empty(t.shape, device="meta")).matrix()
    except (RuntimeError, AssertionError, IndexError) as error:
        sizes = ", ".join(str(tuple(t.shape)) for t in delta.tensors().values())
        raise CheckpointError(
            f"{path}: the tensors of {stem!r} have the shapes {sizes}, which make no {delta.title}.",
            fix="The file is damaged; download or train it again.",
        ) from error


def _notes(
    path: Path, weights: Weights, groups: Mapping[str, Mapping[str, str]], info: Mapping[str, str]
) -> tuple[str, ...]:
    peft = next(iter(groups)).startswith("base_model.model.")
    said = any("alpha" in f for f in groups.values())
    if said or not peft or config_of(path, weights.names, info).given:
        return ()
    return (
        f"{path} comes from peft, and no adapter_config.json beside it says how strong it is; it is "
        "used as its tensors are.",
    )


def _looked_up(groups: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The stems by which a file is recognised: of what is a layer."""
    return [stem for stem, fields in groups.items() if set(fields) != {"diff_m"}] or list(groups)


def _refuse_others(
    path: Path, architecture: Architecture, matched: Mapping[str, object], info: Mapping[str, str]
) -> None:
    said = info.get("ss_base_model_version")
    hits = sum(hit is not None for hit in matched.values())
    other = said if said != architecture.name and said in registry.names() else None
    if other is None and 2 * hits >= len(matched):
        return
    other = other or recognised(matched, apart=architecture) or said
    seems = f" It seems to be for {other}." if other and other != architecture.name else ""
    raise CheckpointError(
        f"{path} is not a LoRA for {architecture.title}: {hits} of its {counted(len(matched), 'layer')} are "
        f"there; it has {', '.join(list(matched)[:_SHOWN])}.{seems}",
        fix="Give a LoRA of this model.",
    )


def _of_a_relative(
    path: Path,
    architecture: Architecture,
    groups: Mapping[str, Mapping[str, str]],
    info: Mapping[str, str],
    shapes: Shapes | None,
) -> LoraFile | None:
    """A file for another network whose names in diffusers are layers here too; else None."""
    said = info.get("ss_base_model_version")
    name = said if said in registry.names() else recognised(_looked_up(groups), apart=architecture)
    if name is None or name == architecture.name:
        return None
    other = registry.find(name)
    dialect = next((d for d in other.dit.dialects if d.name == "diffusers"), None)
    if dialect is None:
        return None
    file = read_lora(path, other)
    layers = _looked_up({layer_of(n): {} for n in dialect.writing(file.deltas)})
    found = known(architecture, [n.removeprefix(dialect.prefix) for n in layers], shapes)
    hits, strays = list[tuple[str, Found, Delta]](), list(file.unknown)
    for theirs, source in dialect.writing(file.deltas).items():
        stem, place = layer_of(theirs.removeprefix(dialect.prefix)), theirs.rpartition(".")[2]
        hit = placed(found, stem, place if place == "bias" else "weight")
        if hit is None or (shapes is not None and hit[0] not in shapes):
            strays.append(source.names[0])
            continue
        with contextlib.suppress(NoWordsError):
            hits.append((stem, hit, part_of(file.deltas[source.names[0]], source)))
    if 2 * len(hits) < len(dialect.writing(file.deltas)):
        return None
    deltas = joined(path, hits)
    check_sizes(path, deltas, shapes or {})
    return LoraFile(
        path=path,
        deltas=deltas,
        metadata=info,
        form=file.form,
        unknown=tuple(dict.fromkeys(strays)),
        notes=(
            *file.notes,
            f"{path} is a LoRA for {other.title}; {architecture.title} has the same layers under other "
            "names, and it is used on these.",
        ),
    )


def _form(stems: Iterable[str], hits: Mapping[str, Found]) -> str:
    stems = list(stems)
    if stems[0].startswith(JOINED):
        return "kohya"
    renamed = any(
        (bare_of(stem) != layer_of(ours) and source.operation != "copy")
        or not layer_of(ours).endswith(bare_of(stem))
        for stem, (ours, source) in hits.items()
        if not ours.endswith("modulation")
    )
    return "diffusers" if renamed else "comfy"
