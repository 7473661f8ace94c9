"""`musubi lora convert`: the same LoRA under the names that another program reads."""

from __future__ import annotations

import torch

from musubi.config.lora import LoraConvertConfig
from musubi.errors import CheckpointError, counted
from musubi.lora.delta import Delta
from musubi.lora.files import ALIASES, architecture_of, keep_apart, read_lora
from musubi.lora.layout import NoWordsError, laid_out, write_lora
from musubi.lora.names import WEIGHT
from musubi.lora.peft import HEADER
from musubi.lora.peft_folder import peft_tensors, write_peft
from musubi.lora.verify import judge, summary
from musubi.plugin import Architecture, Report
from musubi.weights.dtypes import parse_dtype
from musubi.weights.files import open_weights


def run(config: LoraConvertConfig, report: Report) -> None:
    """Rewrite a file; what its tensors change stays the same, and so does its metadata.

    Raises:
        CheckpointError: It is no adapter, or not for this architecture, or does not fit its dtype,
            or the new form cannot hold all of it.
        ConfigError: The output is the input, or the network has no names of that kind.
    """
    target = keep_apart(config.output, [config.input])
    form = ALIASES.get(config.target, config.target)
    if form != config.target:
        report.note(f"--target {config.target} is called {form} here.")
    dtype = _dtype(config.input) if config.dtype is None else parse_dtype(config.dtype)
    architecture = architecture_of(config.input, config.arch)
    file = read_lora(config.input, architecture)
    for note in file.notes:
        report.warn(note)
    if file.unknown and not config.allow_lossy:
        raise CheckpointError(
            f"{file.path} holds {counted(len(file.unknown), 'tensor')} of layers that this version does not know, "
            f"such as {file.unknown[0]!r}; the new file would lack them.",
            fix="Add --allow_lossy to leave them out.",
        )
    complaint = file.complaint()
    if complaint:
        report.warn(complaint)
    deltas = dict(file.deltas)
    if config.allow_lossy:
        deltas, dropped = _sayable(deltas, form, architecture)
        if dropped:
            report.warn(
                f"Left out {counted(len(dropped), 'change')}, such as that of {dropped[0]!r}."
            )
    if form == "peft":
        write_peft(target, deltas, dtype)
        report.note(
            f"Wrote {counted(len(deltas), 'change')} of {architecture.title} into the folder {target}."
        )
        return
    metadata = {k: v for k, v in file.metadata.items() if k != HEADER}
    write_lora(
        target, deltas, form=form, dtype=dtype, metadata=metadata, component=architecture.dit
    )
    report.note(
        f"Wrote {counted(len(deltas), 'change')} of {architecture.title} to {target}: "
        f"{file.form} names became {form} names."
    )
    for verdict in judge(architecture, list(laid_out(_shapes(deltas), form, architecture.dit))):
        line = summary(verdict)
        if line is not None:
            report.warn(line)


def _sayable(
    deltas: dict[str, Delta], form: str, architecture: Architecture
) -> tuple[dict[str, Delta], list[str]]:
    """The adapters that a format can hold, and the names of the others."""
    kept, dropped = dict[str, Delta](), list[str]()
    for name, delta in deltas.items():
        pair = {name: delta}
        if name.endswith(".bias"):  # some forms hold a bias beside the weight alone
            weight = f"{name.removesuffix('.bias')}{WEIGHT}"
            pair |= {weight: deltas[weight]} if weight in deltas else {}
        try:
            if form == "peft":
                peft_tensors({name: delta})
            else:
                laid_out(_shapes(pair), form, architecture.dit)
            kept[name] = delta
        except NoWordsError:
            dropped.append(name)
    if not kept:
        raise CheckpointError(
            f"The form {form} has no words for any of this file's changes.",
            fix="Give another --target, or make pairs of it: `musubi lora resize`.",
        )
    return kept, dropped


def _shapes(deltas: dict[str, Delta]) -> dict[str, Delta]:
    """The same without numbers."""
    return {
        name: delta.mapped(lambda t: torch.empty(t.shape, dtype=t.dtype, device="meta"))
        for name, delta in deltas.items()
    }


def _dtype(path: str) -> torch.dtype:
    """The dtype of a file's matrices; float32, which holds them all, when there are several."""
    with open_weights(path) as weights:
        found = {weights.dtypes[n] for n in weights.names if not n.endswith(".alpha")}
    return found.pop() if len(found) == 1 else torch.float32
