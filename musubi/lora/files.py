"""LoRA files: every common form in, three forms out. All that knows their names is here."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from musubi import registry
from musubi.errors import CheckpointError, ConfigError, did_you_mean
from musubi.lora import metadata as facts
from musubi.lora.names import KOHYA, known, lookup, recognised, underscored
from musubi.lora.pair import Pair
from musubi.lora.patterns import compiled
from musubi.plugin import Architecture, Component, Source
from musubi.weights.files import open_weights
from musubi.weights.write import save

FORMS = ("kohya", "comfy", "diffusers")
ALIASES = {"diffusion_model": "comfy", "default": "kohya", "other": "comfy"}
_KEY = re.compile(
    r"(?P<stem>.+)\.(?:(?P<down>lora_down|lora_A)|(?P<up>lora_up|lora_B))(?:\.default)?\.weight"
)
_KINDS = {
    "LoHa": re.compile(r".*\.hada_.*"),
    "LoKr": re.compile(r".*\.lokr_.*"),
    "DoRA": re.compile(r".*(\.dora_scale|lora_magnitude_vector.*)"),
    "LoCon (CP)": re.compile(r".*\.lora_mid.*"),
    "OFT": re.compile(r".*\.oft_.*"),
}
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A LoRA that was read.

    Args:
        path: The file.
        pairs: Dotted name of a layer, ours, → its pair.
        metadata: Of the file.
        form: "kohya", "comfy" (`diffusion_model.` or bare names) or "diffusers".
        unknown: Names in the file that mean nothing to this model.
    """

    path: Path
    pairs: Mapping[str, Pair]
    metadata: Mapping[str, str]
    form: str
    unknown: tuple[str, ...] = field(default=())

    def complaint(self) -> str | None:
        """One sentence about what was not understood, or None."""
        if not self.unknown:
            return None
        some = ", ".join(self.unknown[:_SHOWN])
        return f"{self.path}: {len(self.unknown)} tensors match no layer and are not used, such as {some}."

    def selected(self, include: str | None = None, exclude: str | None = None) -> LoraFile:
        """Only the layers whose kohya key contains a match of `include` and none of `exclude`."""
        (wanted,), (dropped,) = compiled([include or ""]), compiled([exclude or r"(?!)"])

        def stays(path: str) -> bool:
            key = f"{KOHYA}{underscored(path)}.lora_down.weight"
            return bool(wanted.search(key)) and not dropped.search(key)

        return replace(self, pairs={p: pair for p, pair in self.pairs.items() if stays(p)})

    def sparing(self, patterns: Iterable[str]) -> LoraFile:
        """Without the layers whose whole dotted name one of these patterns matches."""
        spared = compiled(patterns)
        kept = {
            path: pair
            for path, pair in self.pairs.items()
            if not any(pattern.fullmatch(path) for pattern in spared)
        }
        return replace(self, pairs=kept)


def read_lora(
    path: Path | str,
    architecture: Architecture | None = None,
    model_names: Iterable[str] | None = None,
    *,
    finite: bool = True,
) -> LoraFile:
    """Read a LoRA of any common form.

    Args:
        path: The file.
        architecture: Whose layers it is for; None keeps the names of the file.
        model_names: Dotted names of the network's modules, when it is at hand.
        finite: Refuse numbers that are not finite.

    Raises:
        CheckpointError: It is no LoRA, of another kind or of another architecture, incomplete, or
            holds a number that is not finite.
    """
    path = Path(path)
    with open_weights(path) as weights:
        _refuse_kinds(path, weights.names)
        raw, stray = grouped(path, weights.names)
        info = dict(weights.metadata)
        alphas = _alphas(raw, weights, info)
        pairs = {
            stem: Pair(
                weights.read(keys["down"]).clone(), weights.read(keys["up"]).clone(), alphas[stem]
            )
            for stem, keys in raw.items()
        }
    for stem, pair in pairs.items():
        _check(path, stem, pair, finite)
    if architecture is None:
        return LoraFile(
            path=path, pairs=pairs, metadata=info, form=_form(raw, {}), unknown=tuple(stray)
        )
    found = known(architecture, raw, model_names)
    matched = {stem: lookup(found, stem) for stem in pairs}
    _refuse_others(path, architecture, matched, info)
    stray += [n for stem, hit in matched.items() if hit is None for n in raw[stem].values()]
    hits = {stem: hit for stem, hit in matched.items() if hit is not None}
    return LoraFile(
        path=path,
        pairs=_joined(path, pairs, hits),
        metadata=info,
        form=_form(raw, hits),
        unknown=tuple(stray),
    )


def architecture_of(path: Path | str, name: str | None = None) -> Architecture:
    """Whose layers a LoRA file is for: the one of that name, else as its metadata or its names tell.

    Raises:
        CheckpointError: It is no LoRA.
        ConfigError: The architecture is not installed, or nothing tells it.
    """
    if name is None:
        file = read_lora(path, None, finite=False)
        name = file.metadata.get("ss_base_model_version") or recognised(file.pairs)
    if name is None:
        raise ConfigError(
            f"Neither the metadata nor the names in {path} tell what model it is for.",
            fix=f"Add `--arch {' or --arch '.join(registry.names())}`.",
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


def write_lora(
    path: Path | str,
    pairs: Mapping[str, Pair | tuple],
    *,
    form: str = "kohya",
    dtype: torch.dtype = torch.bfloat16,
    metadata: Mapping[str, str] | None = None,
    component: Component | None = None,
) -> None:
    """Write a LoRA file, with model-spec keys and hashes added to its metadata.

    Args:
        path: The file; an existing one is replaced only by a complete one.
        pairs: Dotted name of a layer, ours, → (down, up, alpha).
        form: "kohya" (alpha kept), "comfy" (`diffusion_model.`, alpha folded into B; also called
            "diffusion_model"), or "diffusers" (the names of diffusers, alpha folded in).
        dtype: Of the file.
        metadata: Text for the header.
        component: The network; its "diffusers" dialect gives the names of that form.

    Raises:
        ConfigError: The form is unknown.
        CheckpointError: A number is not finite in the file's dtype.
    """
    tensors = laid_out(
        {p: pair if isinstance(pair, Pair) else Pair(*pair) for p, pair in pairs.items()},
        form,
        component,
    )
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


def laid_out(
    pairs: Mapping[str, Pair], form: str = "kohya", component: Component | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of a file of that form, not yet cast."""
    form = ALIASES.get(form, form)
    if form not in FORMS:
        raise ConfigError(
            f"There is no form {form!r} of LoRA files.", fix=did_you_mean(form, FORMS)
        )
    if form == "kohya":
        out: dict[str, torch.Tensor] = {}
        for path, pair in pairs.items():
            stem = KOHYA + underscored(path)
            out[f"{stem}.lora_down.weight"] = pair.down
            out[f"{stem}.lora_up.weight"] = pair.up
            out[f"{stem}.alpha"] = torch.tensor(float(pair.alpha or pair.rank))
        return out
    if form == "comfy":
        named = {f"diffusion_model.{path}": _folded(pair) for path, pair in pairs.items()}
    else:
        named = _diffusers(pairs, component)
    return {
        f"{stem}.lora_{letter}.weight": tensor.clone()
        for stem, (down, up) in named.items()
        for letter, tensor in (("A", down), ("B", up))
    }


def _folded(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    return pair.down.float(), pair.up.float() * pair.scale


def _diffusers(
    pairs: Mapping[str, Pair], component: Component | None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    dialects = component.dialects if component is not None else ()
    dialect = next((d for d in dialects if d.name == "diffusers"), None)
    if dialect is None:
        raise ConfigError(
            "This network has no names in diffusers.", fix="Write the form comfy or kohya."
        )
    named = {}
    for theirs, source in dialect.writing(f"{path}.weight" for path in pairs).items():
        down, up = _folded(pairs[source.names[0].removesuffix(".weight")])
        stem = theirs.removeprefix(dialect.prefix).removesuffix(".weight")
        named[f"transformer.{stem}"] = (down, _part(up, source))
    return named


def _part(up: torch.Tensor, source: Source) -> torch.Tensor:
    """The rows of an up matrix that belong to their tensor."""
    if source.operation == "swap":
        return torch.cat(up.chunk(2)[::-1])
    if source.operation == "split":
        unit = up.shape[0] // sum(source.ratio)
        return up.split([unit * r for r in source.ratio])[source.part]
    return up


def _refuse_kinds(path: Path, names: Iterable[str]) -> None:
    for kind, pattern in _KINDS.items():
        hit = next((n for n in names if pattern.fullmatch(n)), None)
        if hit is not None:
            raise CheckpointError(
                f"{path} is a {kind} ({hit!r}), which is not read here.",
                fix="Give a plain LoRA, or a checkpoint it was merged into.",
            )


def grouped(path: Path, names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Stem → its keys by role; and the names that have no role."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    alphas: dict[str, str] = {}
    stray: list[str] = []
    for name in names:
        found = _KEY.fullmatch(name)
        if found:
            groups[found["stem"]]["down" if found["down"] else "up"] = name
        elif name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha")] = name
        else:
            stray.append(name)
    for stem, name in alphas.items():
        if stem in groups:
            groups[stem]["alpha"] = name
        else:
            stray.append(name)
    if not groups:
        raise CheckpointError(
            f"{path} is not a LoRA: none of its tensors is called lora_down, lora_A or the like"
            + (f"; they are called {', '.join(stray[:_SHOWN])}." if stray else "."),
            fix="Give a LoRA file.",
        )
    for stem, keys in groups.items():
        if "down" not in keys or "up" not in keys:
            raise CheckpointError(
                f"{path} has only one of the two matrices of {stem!r}.",
                fix="The file is incomplete; download or train it again.",
            )
    return dict(groups), stray


def _alphas(raw: Mapping[str, Mapping[str, str]], weights, info: Mapping[str, str]) -> dict:
    """Alpha of each stem: from the file, else from what peft left in the metadata, else None."""
    given: dict = {}
    if "lora_adapter_metadata" in info:
        try:
            given = json.loads(info["lora_adapter_metadata"])
        except ValueError:
            given = {}
    alpha = given.get("transformer.lora_alpha", given.get("lora_alpha"))
    return {
        stem: float(weights.read(keys["alpha"]).float()) if "alpha" in keys else alpha
        for stem, keys in raw.items()
    }


def _check(path: Path, stem: str, pair: Pair, finite: bool) -> None:
    if pair.down.ndim != 2 or pair.up.ndim != 2 or pair.down.shape[0] != pair.up.shape[1]:
        raise CheckpointError(
            f"{path}: the matrices of {stem!r} are {tuple(pair.down.shape)} and "
            f"{tuple(pair.up.shape)}, which is no pair for a linear layer.",
            fix="Give a LoRA of linear layers.",
        )
    numbers = (pair.down, pair.up, torch.tensor(float(pair.alpha or 0)))
    if finite and not all(bool(torch.isfinite(t.float()).all()) for t in numbers):
        raise CheckpointError(
            f"{path}: {stem!r} holds a number that is not finite.",
            fix="The file is damaged or its training failed; use an earlier checkpoint.",
        )


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
        f"{path} is not a LoRA for {architecture.title}: {hits} of its {len(matched)} layers are "
        f"there; it has {', '.join(list(matched)[:_SHOWN])}.{seems}",
        fix="Give a LoRA of this model.",
    )


def _joined(
    path: Path, pairs: Mapping[str, Pair], hits: Mapping[str, tuple[str, Source]]
) -> dict[str, Pair]:
    out: dict[str, Pair] = {}
    parts: dict[str, dict[int, Pair]] = defaultdict(dict)
    ratios: dict[str, tuple[int, ...]] = {}
    for stem, (ours, source) in hits.items():
        pair = pairs[stem]
        if source.operation == "split":
            clash = source.part in parts[ours]
            parts[ours][source.part] = pair
            ratios[ours] = source.ratio
        else:
            clash = ours in out
            out[ours] = pair._replace(up=_part(pair.up, source))
        if clash or (ours in out and ours in parts):
            raise CheckpointError(
                f"{path} has {ours!r} twice, once as {stem!r}.", fix="The file mixes two layouts."
            )
    out.update({ours: _fused(path, ours, parts[ours], ratios[ours]) for ours in parts})
    return out


def _fused(path: Path, ours: str, parts: Mapping[int, Pair], ratio: tuple[int, ...]) -> Pair:
    """Pairs of parts of a fused layer as one: ranks side by side, rows in their own places."""
    index, first = next(iter(parts.items()))
    unit = first.up.shape[0] // ratio[index]
    if any(p.up.shape[0] != unit * ratio[i] for i, p in parts.items()):
        raise CheckpointError(
            f"{path}: the parts of {ours!r} have sizes that do not join.",
            fix="The file is damaged or of another model.",
        )
    same = len(parts) == len(ratio) and all(
        p.alpha == first.alpha and torch.equal(p.down, first.down) for p in parts.values()
    )
    if same:
        return first._replace(up=torch.cat([parts[i].up for i in range(len(ratio))]))
    rank = sum(p.rank for p in parts.values())
    up = torch.zeros(unit * sum(ratio), rank)
    column = 0
    for i, part in sorted(parts.items()):
        row = unit * sum(ratio[:i])
        up[row : row + part.up.shape[0], column : column + part.rank] = part.up.float() * part.scale
        column += part.rank
    return Pair(torch.cat([parts[i].down.float() for i in sorted(parts)]), up, float(rank))


def _form(raw: Iterable[str], hits: Mapping[str, tuple[str, Source]]) -> str:
    stems = list(raw)
    if stems[0].startswith(KOHYA):
        return "kohya"
    renamed = any(not stem.endswith(ours) for stem, (ours, _) in hits.items())
    return "diffusers" if renamed else "comfy"
