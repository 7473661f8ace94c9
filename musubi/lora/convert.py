"""`musubi lora convert`: the same LoRA under the names that another program reads."""

from __future__ import annotations

import torch

from musubi.config.lora import LoraConvertConfig
from musubi.lora.files import ALIASES, architecture_of, keep_apart, read_lora, write_lora
from musubi.plugin import Report
from musubi.weights.dtypes import parse_dtype
from musubi.weights.files import open_weights

# It names diffusers' layers and holds the alpha that is now in the tensors.
_OF_THE_FORM = "lora_adapter_metadata"


def run(config: LoraConvertConfig, report: Report) -> None:
    """Rewrite a file; what its tensors change stays the same, and so does its metadata.

    Raises:
        CheckpointError: It is no LoRA, or not for this architecture, or does not fit its dtype.
        ConfigError: The output is the input, or the network has no names of that kind.
    """
    target = keep_apart(config.output, [config.input])
    form = ALIASES.get(config.target, config.target)
    if form != config.target:
        report.note(f"--target {config.target} is called {form} here.")
    dtype = _dtype(config.input) if config.dtype is None else parse_dtype(config.dtype)
    architecture = architecture_of(config.input, config.arch)
    file = read_lora(config.input, architecture)
    complaint = file.complaint()
    if complaint:
        report.warn(complaint)
    metadata = {k: v for k, v in file.metadata.items() if k != _OF_THE_FORM}
    write_lora(
        target, file.pairs, form=form, dtype=dtype, metadata=metadata, component=architecture.dit
    )
    report.note(
        f"Wrote {len(file.pairs)} layers of {architecture.title} to {target}: "
        f"{file.form} names became {form} names."
    )


def _dtype(path: str) -> torch.dtype:
    """The dtype of a file's matrices; float32, which holds them all, when there are several."""
    with open_weights(path) as weights:
        found = {weights.dtypes[n] for n in weights.names if not n.endswith(".alpha")}
    return found.pop() if len(found) == 1 else torch.float32
