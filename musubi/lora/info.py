"""`musubi lora info`: what a LoRA file holds."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from musubi.config.lora import LoraInfoConfig
from musubi.lora.files import read_lora
from musubi.lora.names import KOHYA, PREFIXES, recognised
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
    architecture = file.metadata.get("ss_base_model_version") or recognised(file.pairs)
    groups: dict[str, list[float]] = defaultdict(list)
    zero, broken = [], []
    for name, pair in file.pairs.items():
        norm = pair.norm()
        if not math.isfinite(norm):
            broken.append(name)
        else:
            groups[_group(name)].append(norm)
            if norm == 0:
                zero.append(name)
    pairs = file.pairs.values()
    return {
        "file": str(path),
        "architecture": architecture,
        "form": file.form,
        "modules": len(file.pairs),
        "ranks": sorted({p.rank for p in pairs}),
        "alphas": sorted({float(p.alpha or p.rank) for p in pairs}),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for p in pairs for t in p[:2]}),
        "norms": {
            group: {"modules": len(norms), "mean": sum(norms) / len(norms), "max": max(norms)}
            for group, norms in sorted(groups.items())
        },
        "zero": zero,
        "not_finite": broken,
        "unknown": list(file.unknown),
        "metadata": dict(sorted(file.metadata.items())),
    }


def _group(name: str) -> str:
    for prefix in (*PREFIXES, KOHYA):
        name = name.removeprefix(prefix)
    return re.sub(r"(?<=[._])\d+(?=[._])", "*", name, count=1)


def _show(facts: dict[str, Any], report: Report) -> None:
    rows = [(key, _brief(facts[key])) for key in ("architecture", "form", "modules")]
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
    for key, text in (
        ("zero", "change nothing"),
        ("not_finite", "hold a number that is not finite"),
        ("unknown", "are tensors of no pair"),
    ):
        names = facts[key]
        if names:
            report.warn(f"{len(names)} {text}, such as {', '.join(names[:_SHOWN])}.")
    if facts["metadata"]:
        report.table("Metadata", ("key", "value"), list(facts["metadata"].items()))


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "unknown" if value is None else str(value)
