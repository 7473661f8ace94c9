"""The networks of a run: which files, in what dtype, and where their weights live."""

from __future__ import annotations

import torch

from musubi.config.memory import compiler_words
from musubi.config.options import paths, tokenizers
from musubi.config.train import TrainConfig
from musubi.lora.merge import Merging
from musubi.memory.apply import placer
from musubi.memory.compiled import Compiler
from musubi.plan.fit import encoders_for
from musubi.plugin import Architecture, Policy, Report
from musubi.train import adapters
from musubi.weights.dtypes import parse_dtype
from musubi.weights.nets import Nets


def open_networks(
    config: TrainConfig,
    architecture: Architecture,
    device: torch.device,
    policy: Policy,
    report: Report,
) -> tuple[Nets, Merging | None]:
    """Make the collection of networks: each is loaded on first use, and `--base_weights` are merged
    into the DiT while it is loaded.

    Args:
        config: Of the run.
        architecture: The architecture of the networks.
        device: The device that the networks run on.
        policy: The memory policy of the DiT.
        report: Shows what is loaded.
    """
    flags = {
        "vae": config.vae_dtype,
        "text": config.text_encoder_dtype,
        "image": config.image_encoder_dtype,
        "dit": config.dit_dtype,
    }
    if config.full and config.dit_dtype is None:
        flags["dit"] = "float32"
    given = {c.name: flags.get(c.role) for c in architecture.components}
    denoisers = [c for c in architecture.components if c.role == "dit"]
    merging = None
    if config.base_weights:
        merging = adapters.base_weights(
            config.base_weights,
            config.base_weights_multiplier or [],
            architecture,
            paths(config, architecture).get(architecture.dit.name),
        )
    nets = Nets(
        architecture,
        paths(config, architecture),
        device=device,
        dtypes={name: parse_dtype(text) for name, text in given.items() if text is not None},
        tokenizers=tokenizers(config, architecture),
        transforms={} if merging is None else {c.name: merging for c in denoisers},
        place=placer(
            {**encoders_for(config, architecture), **{c.name: policy for c in denoisers}},
            device,
            compiler=Compiler(**compiler_words(config)),
            report=report,
        ),
        report=report,
    )
    return nets, merging
