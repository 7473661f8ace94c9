"""`musubi lora verify`: what ComfyUI and diffusers load of a LoRA file, told from its names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from musubi.config.lora import LoraVerifyConfig
from musubi.errors import CheckpointError
from musubi.lora.files import FORMS, LoraFile, architecture_of, grouped, laid_out, read_lora
from musubi.lora.names import KOHYA, known, known_layers, underscored
from musubi.lora.patterns import choose
from musubi.plugin import Architecture, Component, LoraNames, Report
from musubi.weights.files import open_weights

PROGRAMS = ("ComfyUI", "diffusers")
_SHOWN = 3
_NO_PAIRS = (".diff", ".diff_b", ".set_weight")
Keys = Mapping[str, str]


@dataclass(frozen=True)
class Verdict:
    """What one program does with a file.

    Args:
        program: Its name.
        loads: The tensors that it uses.
        ignores: Those that it does not.
        why: One sentence about these; empty when there are none.
    """

    program: str
    loads: tuple[str, ...]
    ignores: tuple[str, ...]
    why: str = ""


def run(config: LoraVerifyConfig, report: Report) -> None:
    """Show it in a table for each program.

    Raises:
        CheckpointError: Some program does not load all of a file.
        ConfigError: Nothing tells what model a file is for.
    """
    failed = []
    for path in config.files:
        architecture = architecture_of(path, config.arch)
        file = read_lora(path, architecture)
        with open_weights(path) as weights:
            names = [n for n in weights.names if not n.endswith(_NO_PAIRS)]
        verdicts = judge(architecture, names)
        for verdict in verdicts:
            _show(path, verdict, report)
        if len(names) < len(weights.names):
            report.warn(
                f"{path}: {len(weights.names) - len(names)} tensors change biases or norms "
                f"({', '.join(_NO_PAIRS)}); what is said here is about the pairs alone."
            )
        if not any(name.endswith(".alpha") for name in names):
            _check_scale(file, report)
        if any(v.ignores for v in verdicts):
            failed.append((path, verdicts, _advice(file, architecture)))
    if failed:
        path, verdicts, advice = failed[0]
        counts = [
            f"{v.program} {len(v.loads)} of {len(v.loads) + len(v.ignores)} tensors"
            for v in verdicts
        ]
        more = f" Neither do {len(failed) - 1} others." if len(failed) > 1 else ""
        raise CheckpointError(
            f"{path} does not load everywhere: {' and '.join(counts)}.{more}", fix=advice
        )
    report.note("Every tensor loads everywhere.")


def judge(architecture: Architecture, names: Sequence[str]) -> tuple[Verdict, ...]:
    """What each program that has this network does with a file of these tensor names.

    Raises:
        CheckpointError: They are not a LoRA's.
    """
    groups, stray = grouped(Path("The file"), names)
    layers = sorted({ours for ours, _ in known(architecture, groups).values()})
    rules = [*_derived(architecture.dit), *architecture.dit.traits.lora_names]
    return tuple(
        _Reading(
            architecture.dit, layers, [r for r in rules if r.program == program], groups, stray
        ).verdict(program)
        for program in PROGRAMS
        if any(r.program == program for r in rules)
    )


def _derived(component: Component) -> Iterable[LoraNames]:
    """The names that follow from the dialects; see `LoraNames`."""
    dialects = {d.name for d in component.dialects}
    comfy = "comfyui" if "comfyui" in dialects else ""
    yield LoraNames(program="ComfyUI", prefix="diffusion_model.", dialect="official")
    yield LoraNames(program="ComfyUI", prefix="diffusion_model.", dialect=comfy)
    yield LoraNames(program="ComfyUI", prefix=KOHYA, dialect=comfy)
    if "diffusers" in dialects:
        yield LoraNames(
            program="diffusers",
            prefix="transformer.",
            dialect="diffusers",
            down=("lora_A",),
            alpha="refused",
        )


class _Reading:
    """One program and one file."""

    def __init__(
        self,
        component: Component,
        layers: Sequence[str],
        rules: Sequence[LoraNames],
        groups: Mapping[str, Keys],
        stray: Sequence[str],
    ) -> None:
        self.component, self.layers = component, layers
        self.groups, self.stray = groups, stray
        spelled = [(rule, self._spelled(rule)) for rule in rules]
        # A program that makes demands on a form reads a file of that form in no other way.
        strict = [(r, s) for r, s in spelled if r.demands and not s.keys().isdisjoint(groups)]
        self.rules = strict[:1] or [(r, s) for r, s in spelled if not r.demands]

    def verdict(self, program: str) -> Verdict:
        loads, ignores, reasons = list[str](), list(self.stray), list[str]()
        if ignores:
            reasons.append("No such tensors are known.")
        for stem, keys in self.groups.items():
            problem = self._problem(stem, keys)
            (ignores if problem else loads).extend(keys.values())
            if problem:
                reasons.append(problem)
        refusal = self._refusal(loads, ignores)
        if refusal is not None:
            return Verdict(program, (), (*ignores, *loads), refusal)
        return Verdict(program, tuple(loads), tuple(ignores), reasons[0] if reasons else "")

    def _problem(self, stem: str, keys: Keys) -> str | None:
        """Why a pair is not read; None when it is."""
        found = [rule for rule, spelled in self.rules if stem in spelled]
        if not found:
            return "No layer there is called so."
        for rule in found:
            if any(f".{down}." in keys["down"] for down in rule.down):
                return None
        return f"Its matrices would have to be called {found[0].down[0]} and so on."

    def _refusal(self, loads: Sequence[str], ignores: Sequence[str]) -> str | None:
        """Why the whole file is refused; None when it is not."""
        used = [(r, s) for r, s in self.rules if not s.keys().isdisjoint(self.groups)]
        for rule, spelled in used:
            if rule.demands and ignores:
                return (
                    f"It refuses the whole file for a tensor that it does not know, {ignores[0]}."
                )
            without = [stem for stem, keys in self.groups.items() if "alpha" not in keys]
            if rule.alpha == "refused" and len(without) < len(self.groups):
                return "It refuses a file of these names that holds alpha."
            if rule.alpha == "needed" and without:
                return f"It needs an alpha for each pair, and {without[0]} has none."
            if rule.demands == "all":
                missing = self._missing({spelled[s] for s in self.groups if s in spelled})
                if missing:
                    return f"It takes these names only when all layers are there; {missing} is not."
        return None

    def _spelled(self, rule: LoraNames) -> dict[str, str]:
        """Name in a file → our layer, for each that the rule takes."""
        layers: Iterable[str] = self.layers
        if rule.demands == "all":
            layers = self._targets(self.layers)
        dialect = next((d for d in self.component.dialects if d.name == rule.dialect), None)
        if dialect is None:
            bare = {layer: layer for layer in layers}
        else:
            bare = {
                theirs.removeprefix(dialect.prefix).removesuffix(".weight"): source.names[
                    0
                ].removesuffix(".weight")
                for theirs, source in dialect.writing(f"{layer}.weight" for layer in layers).items()
            }
        spell = underscored if rule.prefix == KOHYA else str
        return {rule.prefix + spell(theirs): ours for theirs, ours in bare.items()}

    def _targets(self, layers: Iterable[str]) -> list[str]:
        targets = self.component.traits.lora
        return [] if targets is None else choose(list(layers), targets)[0]

    def _missing(self, present: set[str]) -> str | None:
        """A target layer that a block lacks, when the blocks are counted from 0."""
        common = self._targets(known_layers(self.component))
        for stack in self.component.traits.stacks:
            pattern = re.compile(re.escape(stack) + r"\.(\d+)\.(.+)")
            numbers = {m[1] for m in map(pattern.fullmatch, present) if m}
            tails = {m[2] for m in map(pattern.fullmatch, (*common, *present)) if m}
            for number in range(len(numbers)):
                for tail in sorted(tails):
                    if f"{stack}.{number}.{tail}" not in present:
                        return f"{stack}.{number}.{tail}"
        return None


def _advice(file: LoraFile, architecture: Architecture) -> str:
    """The form that loads everywhere, found by laying the file out in each and judging that."""
    meta = {
        path: pair._replace(
            down=torch.empty(pair.down.shape, device="meta"),
            up=torch.empty(pair.up.shape, device="meta"),
        )
        for path, pair in file.pairs.items()
    }
    has_names = {d.name for d in architecture.dit.dialects}
    counts = {
        form: min(
            len(v.loads) / (len(v.loads) + len(v.ignores))
            for v in judge(architecture, list(laid_out(meta, form, architecture.dit)))
        )
        for form in sorted(FORMS, key=("comfy", "diffusers", "kohya").index)
        if form != "diffusers" or "diffusers" in has_names
    }
    best = max(counts, key=lambda form: counts[form])
    output = file.path.with_name(f"{file.path.stem}-{best}.safetensors")
    command = (
        f'musubi lora convert --arch {architecture.name} --input "{file.path}" '
        f'--output "{output}" --target {best}'
    )
    if counts[best] == 1:
        return f"Convert it to the form {best}, which does: `{command}`."
    return f"No form loads everywhere; the form {best} comes nearest: `{command}`."


def _check_scale(file: LoraFile, report: Report) -> None:
    """Say when the strength is only in the metadata, which few programs read."""
    scales = {pair.scale for pair in file.pairs.values()} - {1.0}
    if scales:
        report.warn(
            f"{file.path} has alpha only in its metadata, which ComfyUI does not read: there it is "
            f"{1 / min(scales):g} times as strong. `musubi lora convert` folds it in."
        )


def _show(path: str, verdict: Verdict, report: Report) -> None:
    rows = [("loads", len(verdict.loads), ", ".join(verdict.loads[:_SHOWN]), "")]
    if verdict.ignores:
        some = ", ".join(verdict.ignores[:_SHOWN])
        rows.append(("does not load", len(verdict.ignores), some, verdict.why))
    columns = ("", "tensors", "for example", "why")
    report.table(f"{verdict.program}: {path}", columns, rows)
