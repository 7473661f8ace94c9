"""`musubi lora verify`: what other programs load of an adapter file, told from its names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from musubi.config.lora import LoraVerifyConfig
from musubi.errors import CheckpointError, MusubiError, counted
from musubi.lora.delta import Delta
from musubi.lora.files import FORMS, LoraFile, architecture_of, read_lora
from musubi.lora.keys import grouped
from musubi.lora.layout import laid_out
from musubi.lora.names import WEIGHT, bare_of, known, known_parameters, lookup
from musubi.lora.patterns import choose
from musubi.lora.programs import Judge, Verdict, readings, spelled_by
from musubi.plugin import Architecture, Component, Report
from musubi.weights.files import open_weights

PROGRAMS = ("ComfyUI", "diffusers")
_SHOWN = 3


def run(config: LoraVerifyConfig, report: Report) -> None:
    """Show it in a table for each program.

    Raises:
        CheckpointError: Some program does not load all of a file.
        ConfigError: Nothing tells what model a file is for.
    """
    failed, unsure = [], 0
    for path in config.files:
        architecture = architecture_of(path, config.arch)
        file = read_lora(path, architecture)
        with open_weights(path) as weights:
            names = list(weights.names)
        verdicts = judge(architecture, names)
        for verdict in verdicts:
            _show(path, verdict, report)
        for note in file.notes:
            report.warn(note)
        if not any(name.endswith(".alpha") for name in names):
            _check_scale(file, report)
        unsure += max(len(v.unknown) for v in verdicts)
        if any(v.ignores for v in verdicts):
            failed.append((path, verdicts, _advice(file, architecture)))
    if failed:
        path, verdicts, advice = failed[0]
        counts = [f"{v.program} {len(v.loads)} of {_count(v)} tensors" for v in verdicts]
        more = f" The same of {counted(len(failed) - 1, 'other file')}." if len(failed) > 1 else ""
        raise CheckpointError(
            f"{path} does not load everywhere: {' and '.join(counts)}.{more}", fix=advice
        )
    if unsure:
        report.warn(
            f"Whether {counted(unsure, 'tensor')} of a kind that this version does not know can be loaded "
            "cannot be said; all others load everywhere."
        )
        return
    report.note("Every tensor loads everywhere.")


def judge(architecture: Architecture, names: Sequence[str]) -> tuple[Verdict, ...]:
    """What each program that has this network does with a file of these tensor names.

    Raises:
        CheckpointError: They are not an adapter's.
    """
    component = architecture.dit
    groups, stray = grouped(Path("The file"), names)
    found = known(architecture, groups)
    hits = {stem: hit for stem in groups if (hit := lookup(found, stem)) is not None}
    hits |= {
        stem: hit
        for stem in groups
        if stem not in hits
        for hit in (found.get(f"{bare_of(stem)}.modulation"),)
        if hit is not None
    }
    # Rows of the table are chosen by layers, of which the file may have few.
    ours = sorted({hit[0] for hit in hits.values()} | known_parameters(component, linear=True))
    rules = readings(component)
    return tuple(
        Judge(
            program,
            rules,
            lambda rule: spelled_by(component, ours, rule),
            hits,
            lambda present: _missing(component, present),
        ).verdict(groups, stray)
        for program in PROGRAMS
        if any(rule.program == program for rule in rules)
    )


def best_form(
    architecture: Architecture,
    deltas: Mapping[str, Delta],
    order: Sequence[str] = ("kohya", "comfy"),
) -> tuple[str, float]:
    """The form of names that the programs load most of, and how much the worst of them loads.

    Args:
        architecture: The architecture of the network.
        deltas: Our names → changes.
        order: The forms; the first of equal ones is taken. By default those with the released names,
            which the tools around a network know best.
    """
    meta = {
        name: delta.mapped(lambda t: torch.empty(t.shape, device="meta"))
        for name, delta in deltas.items()
    }
    counts: dict[str, tuple[float, float]] = {}
    for form in order:
        try:
            names = list(laid_out(meta, form, architecture.dit))
        except MusubiError:
            continue
        shares = [len(v.loads) / _count(v) for v in judge(architecture, names)]
        counts[form] = min(shares, default=1.0), sum(shares)
    best = max(counts, key=lambda form: counts[form], default=FORMS[0])
    return best, counts[best][0] if counts else 0.0


def summary(verdict: Verdict) -> str | None:
    """One or two sentences about what a program leaves out; None when it loads everything."""
    if not verdict.ignores:
        return None
    count = _count(verdict)
    if not verdict.loads:
        return f"{verdict.program} loads none of its {counted(count, 'tensor')}. {verdict.why}"
    return (
        f"{verdict.program} leaves out {len(verdict.ignores)} of its {counted(count, 'tensor')}, such as "
        f"{verdict.ignores[0]}. {verdict.why}"
    )


def _missing(component: Component, present: set[str]) -> str | None:
    """A target layer that a block lacks, when the blocks are counted from 0."""
    linear = known_parameters(component, linear=True)
    common = _targets(component, (p.removesuffix(WEIGHT) for p in linear))
    for stack in component.traits.stacks:
        pattern = re.compile(re.escape(stack) + r"\.(\d+)\.(.+)")
        numbers = {m[1] for m in map(pattern.fullmatch, present) if m}
        tails = {m[2] for m in map(pattern.fullmatch, (*common, *present)) if m}
        for number in range(len(numbers)):
            for tail in sorted(tails):
                if f"{stack}.{number}.{tail}" not in present:
                    return f"{stack}.{number}.{tail}"
    return None


def _targets(component: Component, layers: Iterable[str]) -> list[str]:
    targets = component.traits.lora
    return [] if targets is None else choose(list(layers), targets)[0]


def _advice(file: LoraFile, architecture: Architecture) -> str:
    """The form that loads everywhere, found by laying the file out in each and judging that."""
    # Old names load in fewer programs when layers are missing.
    best, share = best_form(architecture, file.deltas, ("comfy", "diffusers", "kohya"))
    output = file.path.with_name(f"{file.path.stem}-{best}.safetensors")
    command = (
        f'musubi lora convert --arch {architecture.name} --input "{file.path}" '
        f'--output "{output}" --target {best}'
    )
    if file.unknown:
        command += " --allow_lossy"
    if share == 1 and not file.unknown:
        return f"Convert it to the form {best}, which does: `{command}`."
    return f"No form loads everywhere; the form {best} comes nearest: `{command}`."


def _check_scale(file: LoraFile, report: Report) -> None:
    """Say when the strength is only beside the tensors, where few programs read it."""
    scales = {pair.scale for pair in file.pairs.values()} - {1.0}
    if not scales:
        return
    least = min(scales)
    there = f"{1 / least:g} times as strong" if least else "at full strength"
    report.warn(
        f"{file.path} has alpha only in its metadata, which ComfyUI does not read: there it is "
        f"{there}. `musubi lora convert` folds it in."
    )


def _count(verdict: Verdict) -> int:
    return len(verdict.loads) + len(verdict.ignores) + len(verdict.unknown)


def _show(path: str, verdict: Verdict, report: Report) -> None:
    rows = [("loads", len(verdict.loads), ", ".join(verdict.loads[:_SHOWN]), "")]
    if verdict.ignores:
        some = ", ".join(verdict.ignores[:_SHOWN])
        rows.append(("does not load", len(verdict.ignores), some, verdict.why))
    if verdict.unknown:
        some = ", ".join(verdict.unknown[:_SHOWN])
        rows.append(("not known", len(verdict.unknown), some, "This version does not know them."))
    columns = ("", "tensors", "for example", "why")
    report.table(f"{verdict.program}: {path}", columns, rows)
