"""What other programs load of an adapter file: the published rules of their loaders, as a table.

A row says by which names a program knows a network's layers and which fields it reads there. Rows
are chosen by the dialects and layers of a network, so an architecture declares nothing for this, and
what is known of a program stands here alone. Everything about diffusers is compared with its own
loaders in a test; ComfyUI's rules are those of `comfy/lora.py` and `comfy/weight_adapter/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from musubi.lora.names import KOHYA, WEIGHT, known_parameters
from musubi.plugin import Component

PAIR = frozenset({"down", "up", "alpha"})
_MATRICES = frozenset({"down", "up"})
_LYCORIS = frozenset(
    {f"hada_{n}" for n in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}
    | {f"lokr_{n}" for n in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}
    | {"blocks", "rescale", "mid", "magnitude"}
)
_DIFFERENCES = frozenset({"diff", "diff_b", "w_norm", "b_norm", "set_weight"})
COMFYUI = PAIR | _LYCORIS | _DIFFERENCES
_LETTERS = r".*\.lora_[AB](\.default)?\.weight"
_WORDS = r".*\.lora_(down|up|mid)\.weight"


Alone = Literal["read", "passed", "refused"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a program reads one form of names.

    Args:
        program: Its name.
        prefix: What stands before a layer's name; behind `lora_unet_` dots are underscores.
        dialect: The dialect whose names follow; ours when empty.
        layers: Pattern of our layers that it knows by these names.
        fields: What it reads of a layer.
        spelled: Pattern of the names of matrices; others of a pair are passed over.
        biases: Pattern of our layers whose bias it changes too.
        alpha: What becomes of an alpha: it is read; must be there for each pair; or makes the
            program refuse the file.
        unread: What a name does that it does not read: it is passed over, or the file is refused.
        passed: Pattern of names that are passed over even where others are refused.
        when: Pattern of which some name in the file must hold a match, or the form is not recognised.
        alone: What becomes of a difference of a bias beside which there is no pair.
        complete: It takes these names only when each target layer of each block is there.
    """

    program: str
    prefix: str
    dialect: str = ""
    layers: str = ".*"
    fields: frozenset[str] = COMFYUI
    spelled: str = ".*"
    biases: str = ".*"
    alpha: Literal["read", "needed", "refused"] = "read"
    unread: Literal["passed", "refused"] = "passed"
    passed: str = r"(?!)"
    when: str = ""
    complete: bool = False
    alone: Alone = "read"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Readings of networks that have certain layers and dialects.

    Args:
        has: A layer, ours, by which the network is known; with `{n}` for the number of a block.
        readings: In the order in which the program tries them; it reads a file by the first whose
            prefix occurs.
        lacks: Programs that have no such network.
        native: Whether the released names are those of diffusers.
    """

    has: str
    readings: tuple[Reading, ...] = field(default=())
    lacks: tuple[str, ...] = ()
    native: bool = False


def _diffusers(**more: object) -> Reading:
    """The names of diffusers itself, which every network of it reads."""
    return Reading(  # type: ignore[arg-type]
        **{
            "program": "diffusers",
            "prefix": "transformer.",
            "dialect": "diffusers",
            "fields": _MATRICES | {"magnitude", "up_bias"},
            "spelled": _LETTERS + r"|.*\.to_[qkv]_lora\.(down|up)\.weight",
            "alpha": "refused",
            "unread": "refused",
            "passed": r".*lora.*|.*\.dora_scale",
            **more,
        }
    )


# Layers around the blocks, and what becomes of a bias there beside which there is no pair.
_AROUND: tuple[tuple[str, Alone], ...] = (
    (r"(text|time)_embedding\.[02]", "refused"),
    (r"time_projection\.1|img_emb\.proj\.[13]", "passed"),
    (r"head\.head", "read"),
)
_ATTENTION = r"blocks\.\d+\.((self_attn|cross_attn)\.[qkvo]|cross_attn\.[kv]_img|ffn\.[02])"
_OLD_NAMES = r".*(_mod\.linear|_attn_qkv|_attn_proj|mlp\.fc[12]|\.modulation\.linear)"

TABLE: tuple[Row, ...] = (
    # Blocks with self- and cross-attention and a feed-forward network of two layers. diffusers takes
    # one layer after the other out of the file and refuses what is left, differences aside.
    Row(
        has="blocks.{n}.cross_attn.q",
        readings=(
            Reading(
                program="diffusers",
                prefix="diffusion_model.",
                layers=_ATTENTION,
                fields=PAIR | {"diff_b"},
                spelled=f"{_LETTERS}|{_WORDS}",
                biases=_ATTENTION,
                unread="refused",
                passed=r".*\.diff(_b|_m)?",
            ),
            *(
                Reading(
                    program="diffusers",
                    prefix="diffusion_model.",
                    layers=layers,
                    fields=_MATRICES | {"diff_b"},
                    spelled=f"{_LETTERS}|{_WORDS}",
                    unread="refused",
                    alone=alone,
                )
                for layers, alone in _AROUND
            ),
            Reading(
                program="diffusers",
                prefix=KOHYA,
                layers=_ATTENTION,
                fields=PAIR,
                spelled=_WORDS,
                alpha="needed",
                unread="refused",
                complete=True,
            ),
            _diffusers(),
        ),
    ),
    # Blocks of two streams, then of one, with fused projections. diffusers knows the original names
    # under either prefix and reads no alpha; ComfyUI renames these layers and keeps the old names of
    # those in blocks.
    Row(
        has="double_blocks.{n}.img_attn_qkv",
        readings=(
            Reading(program="ComfyUI", prefix="transformer.", layers=_OLD_NAMES),
            *(
                Reading(
                    program="diffusers",
                    prefix=prefix,
                    fields=_MATRICES,
                    spelled=_LETTERS,
                    alpha="refused",
                    unread="refused",
                    passed=r".*lora.*|.*\.dora_scale",
                    when="img_attn_qkv",
                )
                for prefix in ("diffusion_model.", "transformer.")
            ),
            _diffusers(),
        ),
    ),
    # The same blocks under the names of diffusers, with an embedder for clean latents beside them.
    Row(
        has="clean_x_embedder.proj",
        readings=(_diffusers(dialect=""),),
        lacks=("ComfyUI",),
        native=True,
    ),
)


def is_native(component: Component) -> bool:
    """Whether a network's released names are those of diffusers, without a dialect that says so."""
    return any(row.native for row in _rows(component))


def readings(component: Component) -> list[Reading]:
    """How programs read adapters of a network.

    Args:
        component: Its denoiser.
    """
    dialects = {d.name for d in component.dialects}
    comfy = "comfyui" if "comfyui" in dialects else ""
    rows = _rows(component)
    renames = any(d.name == "comfyui" and d.rules for d in component.dialects)
    old = _OLD_NAMES if renames and rows else ".*"
    found = [
        Reading(program="ComfyUI", prefix="diffusion_model.", layers=old),
        Reading(program="ComfyUI", prefix="diffusion_model.", dialect=comfy),
        Reading(program="ComfyUI", prefix=KOHYA, dialect=comfy),
    ]
    found += [reading for row in rows for reading in row.readings]
    if "diffusers" in dialects and not any(r.program == "diffusers" for r in found):
        found.append(_diffusers())
    lacking = {program for row in rows for program in row.lacks}
    return [reading for reading in found if reading.program not in lacking]


def _rows(component: Component) -> list[Row]:
    """The rows for a network, by its layers at the toy's size."""
    layers = [name.removesuffix(WEIGHT) for name in known_parameters(component)]
    patterns = {row: re.escape(row.has).replace(re.escape("{n}"), r"\d+") for row in TABLE}
    return [
        row
        for row, pattern in patterns.items()
        if any(re.fullmatch(pattern, layer) for layer in layers)
    ]


@dataclass(frozen=True)
class Verdict:
    """What one program does with a file.

    Args:
        program: Its name.
        loads: The tensors that it uses.
        ignores: Tensors that the program ignores.
        unknown: Tensors that this version does not know.
        why: One sentence about what is ignored; empty when nothing is.
    """

    program: str
    loads: tuple[str, ...]
    ignores: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    why: str = ""


Spelling = Callable[[Reading], Mapping[str, str]]
"""Gives the stems of a reading: their name → our layer."""


class Judge:
    """One program and the names of one file.

    Args:
        program: Its name.
        rules: Its readings.
        spelling: The stems of each.
        known: The stems that are layers here, whatever they are called.
        missing: Given our layers that are there, one that a complete file would have too.
    """

    def __init__(
        self,
        program: str,
        rules: Sequence[Reading],
        spelling: Spelling,
        known: Iterable[str],
        missing: Callable[[set[str]], str | None],
    ) -> None:
        self.program = program
        self.rules = [(rule, spelling(rule)) for rule in rules if rule.program == program]
        self.known = set(known)
        self.missing = missing

    def verdict(self, groups: Mapping[str, Mapping[str, str]], stray: Sequence[str]) -> Verdict:
        """What the program does with these tensors."""
        rules = self._chosen(groups)
        loads, ignores, unknown, reasons = list[str](), list[str](), list[str](), list[str]()
        refused = next(
            (f"It refuses the whole file for {n}." for n in stray if self._refuses(rules, n)), None
        )
        unknown += stray
        for stem, fields in groups.items():
            found = [rule for rule, names in rules if stem in names]
            if not found and stem not in self.known:
                unknown += fields.values()
                for name in fields.values():
                    if self._refuses(rules, name):
                        refused = refused or f"It refuses the whole file for {name}."
                continue
            for name_field, name in fields.items():
                problem = self._problem(rules, stem, name_field, name, fields)
                (ignores if problem else loads).append(name)
                if problem:
                    reasons.append(problem)
                    if self._refuses(rules, name):
                        refused = refused or f"It refuses the whole file for {name}."
            refused = refused or self._alpha(found, stem, fields)
            if "down" not in fields and any(r.alone == "refused" for r in found):
                refused = refused or f"It refuses a file that changes {stem} without a pair."
        refused = refused or self._incomplete(rules, groups)
        strict = any(r.unread == "refused" for r, _ in rules)
        if strict and loads and not any("down" in groups[s] for s in groups):
            refused = refused or "It loads no file without pairs."
        if refused is not None:
            everything = (*loads, *ignores, *unknown)
            return Verdict(self.program, (), everything, (), refused)
        why = reasons[0] if reasons else ""
        return Verdict(self.program, tuple(loads), tuple(ignores), tuple(unknown), why)

    def _chosen(
        self, groups: Mapping[str, Mapping[str, str]]
    ) -> list[tuple[Reading, Mapping[str, str]]]:
        """A program that refuses names chooses one prefix by what occurs, and reads no other."""
        strict = [(r, names) for r, names in self.rules if r.unread == "refused"]
        if not strict:
            return self.rules
        prefixes = dict.fromkeys(r.prefix for r, _ in strict)
        for prefix, dialect in dict.fromkeys((r.prefix, r.dialect) for r, _ in strict):
            group = [(r, n) for r, n in strict if (r.prefix, r.dialect) == (prefix, dialect)]
            seen = all(any(re.search(r.when, stem) for stem in groups) for r, _ in group)
            if seen and any(stem in names for stem in groups for _, names in group):
                return group
        occurs = [p for p in prefixes if any(stem.startswith(p) for stem in groups)]
        return [(r, names) for r, names in strict if r.prefix in occurs[:1]] or strict[-1:]

    def _problem(
        self,
        rules: Sequence[tuple[Reading, Mapping[str, str]]],
        stem: str,
        name_field: str,
        name: str,
        fields: Mapping[str, str],
    ) -> str | None:
        """Why a tensor is not read; None when it is."""
        found = [(rule, names[stem]) for rule, names in rules if stem in names]
        if not found:
            return f"No layer has this name in {self.program}."
        for rule, layer in found:
            if name_field not in rule.fields:
                continue
            if name_field == "diff_b" and "down" not in fields and rule.alone != "read":
                continue
            if name_field in ("diff_b", "up_bias", "b_norm"):
                if re.fullmatch(rule.biases, layer) and not _diffused_norm(rule, name):
                    return None
            elif name_field in ("down", "up", "mid"):
                if all(
                    re.fullmatch(rule.spelled, fields[f]) for f in ("down", "up") if f in fields
                ):
                    return None
            elif not (_diffused_norm(rule, name) and name_field == "diff"):
                return None
        if any(name_field in rule.fields for rule, _ in found):
            return f"{self.program} has other words for this tensor."
        return f"{self.program} reads no .{name.rpartition('.')[2]} of this layer."

    def _refuses(self, rules: Sequence[tuple[Reading, Mapping[str, str]]], name: str) -> bool:
        return any(r.unread == "refused" and not re.fullmatch(r.passed, name) for r, _ in rules[:1])

    def _alpha(self, found: Sequence[Reading], stem: str, fields: Mapping[str, str]) -> str | None:
        pair = "down" in fields
        if any(r.alpha == "refused" for r in found) and "alpha" in fields:
            return "It refuses a file of these names that holds alpha."
        if pair and any(r.alpha == "needed" for r in found) and "alpha" not in fields:
            return f"It needs an alpha for each pair, and {stem} has none."
        return None

    def _incomplete(
        self,
        rules: Sequence[tuple[Reading, Mapping[str, str]]],
        groups: Mapping[str, Mapping[str, str]],
    ) -> str | None:
        for rule, names in rules:
            if rule.complete:
                missing = self.missing({names[stem] for stem in groups if stem in names})
                if missing:
                    return f"It takes these names only when all layers are there; {missing} is not."
        return None


def _diffused_norm(rule: Reading, name: str) -> bool:
    return rule.program == "diffusers" and "norm" in name


def spelled_by(component: Component, parameters: Iterable[str], rule: Reading) -> dict[str, str]:
    """The stems that a reading knows: name in a file → our layer, or our tensor that is no weight."""
    joined = rule.prefix == KOHYA
    # Only what is a weight has a name there whose dots are underscores.
    wanted = [
        p
        for p in parameters
        if re.fullmatch(rule.layers, p.removesuffix(WEIGHT)) and (p.endswith(WEIGHT) or not joined)
    ]
    dialect = next((d for d in component.dialects if d.name == rule.dialect), None)
    made = {p: p for p in wanted}
    if dialect is not None:
        written = dialect.writing(wanted).items()
        made = {theirs.removeprefix(dialect.prefix): s.names[0] for theirs, s in written}
    bare = {theirs.removesuffix(WEIGHT): ours.removesuffix(WEIGHT) for theirs, ours in made.items()}
    if not joined:
        return {rule.prefix + theirs: ours for theirs, ours in bare.items()}
    found = {KOHYA + theirs.replace(".", "_"): ours for theirs, ours in bare.items()}
    if rule.program == "ComfyUI":  # as the Fun LoRAs are written
        found |= {name.replace(KOHYA, f"{KOHYA}_", 1): ours for name, ours in found.items()}
    return found
