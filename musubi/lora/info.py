"""`musubi lora info`: what a LoRA file holds."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch

from musubi.config.lora import LoraInfoConfig
from musubi.errors import counted
from musubi.lora.delta import Pair
from musubi.lora.files import read_lora
from musubi.lora.kinds import Decomposed, Hada, Kron
from musubi.lora.names import JOINED, PREFIXES, fitting
from musubi.plugin import Report

_SHOWN = 3


def run(config: LoraInfoConfig, report: Report) -> None:
    """Say it in tables, or as one JSON list.

    Raises:
        CheckpointError: A file is no LoRA.
    """
    found = [describe(path) for path in config.files]
    if config.json_output:
        report.note(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for facts in found:
        _show(facts, report)


def describe(path: Path | str) -> dict[str, Any]:
    """What a LoRA file holds, as plain values.

    Raises:
        CheckpointError: It is no LoRA.
    """
    file = read_lora(path, None, finite=False)
    fit = fitting(file.deltas)
    architecture = file.metadata.get("ss_base_model_version") or " or ".join(fit) or None
    groups: dict[str, list[float]] = defaultdict(list)
    zero, broken, unmeasured = [], [], 0
    for name, delta in file.deltas.items():
        if not all(bool(torch.isfinite(t.float()).all()) for t in delta.tensors().values()):
            broken.append(name)
            continue
        norm = delta.norm()
        unmeasured += norm is None
        if norm is not None:
            groups[_group(name)].append(norm)
            if norm == 0:
                zero.append(name)
    kinds = Counter(delta.title for delta in file.deltas.values())
    inner = [d.inner if isinstance(d, Decomposed) else d for d in file.deltas.values()]
    ranked = [d for d in inner if isinstance(d, (Pair, Hada, Kron)) and d.rank is not None]
    tensors = [t for d in file.deltas.values() for t in d.tensors().values()]
    return {
        "file": str(path),
        "architecture": architecture,
        "form": file.form,
        "kinds": dict(kinds.most_common()),
        "modules": len(file.deltas),
        "ranks": sorted({d.rank for d in inner if d.rank is not None}),
        "alphas": sorted({_alpha(d) for d in ranked}),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors}),
        "norms": {
            group: {"modules": len(norms), "mean": sum(norms) / len(norms), "max": max(norms)}
            for group, norms in sorted(groups.items())
        },
        "unmeasured": unmeasured,
        "zero": zero,
        "not_finite": broken,
        "unknown": list(file.unknown),
        "metadata": dict(sorted(file.metadata.items())),
    }


def _alpha(delta: Pair | Hada | Kron) -> float:
    return float((delta.rank or 1) if delta.alpha is None else delta.alpha)


def _group(name: str) -> str:
    for prefix in (*PREFIXES, *JOINED):
        name = name.removeprefix(prefix)
    return re.sub(r"(?<=[._])\d+(?=[._])", "*", name, count=1)


def _show(facts: dict[str, Any], report: Report) -> None:
    rows = [(key, _brief(facts[key])) for key in ("architecture", "form", "kinds", "modules")]
    rows += [(key, _brief(facts[key])) for key in ("ranks", "alphas", "dtypes")]
    report.table(facts["file"], ("", ""), rows)
    report.table(
        "Norms of the change",
        ("layers", "count", "mean", "largest"),
        [
            (group, n["modules"], f"{n['mean']:.4g}", f"{n['max']:.4g}")
            for group, n in facts["norms"].items()
        ],
    )
    if facts["unmeasured"]:
        report.note(
            f"No norm of {counted(facts['unmeasured'], 'change')}, which only the weights tell (DoRA, OFT)."
        )
    for key, text in (
        ("zero", "Layers that are not changed"),
        ("not_finite", "Layers with a number that is not finite"),
        ("unknown", "Tensors of no layer"),
    ):
        names = facts[key]
        if names:
            report.warn(f"{text}: {len(names)}, such as {', '.join(names[:_SHOWN])}.")
    if facts["metadata"]:
        report.table("Metadata", ("key", "value"), list(facts["metadata"].items()))


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "unknown" if value is None else str(value)
