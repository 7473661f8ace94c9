"""`musubi cache latents` and `musubi cache text`, and the same for a training run that lacks records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from musubi.cache.caching_run import CachingRun, Summary, Told
from musubi.cache.freshness import Wanted, cache_options
from musubi.cache.header import Kind
from musubi.cache.media import cache_media
from musubi.cache.tasks import device_of, encoders_of, task_of, threads
from musubi.cache.text import cache_captions
from musubi.config.cache import CacheLatentsConfig, CacheTextConfig, EncodingOptions
from musubi.config.dataset import read_dataset_config
from musubi.config.memory import encoder_policies
from musubi.config.options import own_options, paths, tokenizers
from musubi.errors import ConfigError
from musubi.memory.apply import placer
from musubi.plugin.architecture import Architecture, Task
from musubi.plugin.option import Command
from musubi.plugin.policy import Policy
from musubi.plugin.report import Report
from musubi.sharing import launched
from musubi.weights.dtypes import dtype_name, parse_dtype
from musubi.weights.identity import identity
from musubi.weights.nets import Nets

if TYPE_CHECKING:
    from musubi.config.dataset import DatasetFile

__all__ = ["Summary", "cache_latents", "cache_text", "ensure", "run_latents", "run_text"]


def run_latents(config: CacheLatentsConfig, architecture: Architecture, report: Report) -> None:
    """`musubi cache latents`."""
    cache_latents(config, architecture, report).tell(report, "Latents")


def run_text(config: CacheTextConfig, architecture: Architecture, report: Report) -> None:
    """`musubi cache text`."""
    cache_text(config, architecture, report).tell(report, "Text")


def cache_latents(
    config: CacheLatentsConfig, architecture: Architecture, report: Report
) -> Summary:
    """Make the media records of a dataset that are missing or stale.

    Raises:
        MusubiError: See `musubi.cache.media.cache_media`; or an option cannot be used.
    """
    task = task_of(config, architecture)
    request = _request(config, architecture, task, report)
    asked = {"vae": config.vae_dtype, "image": config.image_encoder_dtype}
    dtypes = {c.name: asked.get(c.role) for c in architecture.components}
    return _run("media", replace(request, dtypes=dtypes))


def cache_text(config: CacheTextConfig, architecture: Architecture, report: Report) -> Summary:
    """Make the text records of a dataset that are missing or stale.

    Raises:
        MusubiError: See `musubi.cache.text.cache_captions`; or an option cannot be used.
    """
    task = task_of(config, architecture)
    request = _request(config, architecture, task, report)
    dtypes = {c.name: config.text_encoder_dtype for c in architecture.components}
    return _run("text", replace(request, dtypes=dtypes))


def ensure(
    dataset: DatasetFile,
    architecture: Architecture,
    task: Task,
    *,
    files: Mapping[str, Path],
    report: Report,
    options: Mapping[str, Any] | None = None,
    tokenizers: Mapping[str, Path] | None = None,
    device: torch.device | None = None,
) -> Told:
    """Make missing and stale records before training, if the encoders' files are given.

    If an encoder has no file, its kind of record is left alone. The dtypes of records, and options
    that training does not have, are not compared.

    Args:
        dataset: The dataset file, resolved.
        architecture: The architecture of the records.
        task: The task that is trained.
        files: Component name to its weights file.
        report: Gets messages if there was something to do.
        options: The architecture's own options.
        tokenizers: Component name to its tokenizer.
        device: Where to encode; cuda when there is one.

    Returns:
        The files that were left out; each was shown once.

    Raises:
        MusubiError: As `cache_latents` and `cache_text`.
    """
    request = _Request(
        dataset=dataset,
        architecture=architecture,
        task=task,
        report=report,
        files=files,
        options=options or {},
        tokenizers=tokenizers or {},
        device=device or device_of(None),
        workers=threads(None),
        keep=True,
        training=True,
    )
    kinds: tuple[tuple[Kind, str], ...] = (("media", "Latents"), ("text", "Text"))
    told: Told = frozenset()
    for kind, title in kinds:
        if all(c.name in files for c in encoders_of(architecture, task, kind)):
            summary = _run(kind, request)
            failed = {(p.name, p.reason) for p in summary.failed}
            if summary.encoded or summary.renewed or failed - told:
                summary.tell(report, title, told=told)
            told |= failed
    return told


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The request of a caching command, before any file is read."""

    dataset: DatasetFile
    architecture: Architecture
    task: Task
    report: Report
    files: Mapping[str, Path]
    options: Mapping[str, Any]
    tokenizers: Mapping[str, Path]
    device: torch.device
    workers: int
    dtypes: Mapping[str, str | None] = field(default_factory=dict)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    skip_existing: bool = False
    keep: bool = False
    strict: bool = False
    training: bool = False


def _request(
    config: EncodingOptions, architecture: Architecture, task: Task, report: Report
) -> _Request:
    dataset = read_dataset_config(config.dataset_config, architecture, task)
    for note in dataset.notes:
        report.note(note)
    return _Request(
        dataset=dataset,
        architecture=architecture,
        task=task,
        report=report,
        files=paths(config, architecture),
        options=own_options(config, architecture),
        tokenizers=tokenizers(config, architecture),
        device=device_of(config.device),
        workers=threads(config.num_workers),
        skip_existing=config.skip_existing,
        keep=config.keep_cache,
        strict=config.strict,
        policies=encoder_policies(config, architecture),
    )


def _run(kind: Kind, request: _Request) -> Summary:
    architecture, task = request.architecture, request.task
    encoders = encoders_of(architecture, task, kind)
    command: Command = "cache latents" if kind == "media" else "cache text"
    for component in encoders:
        if component.name not in request.files:
            raise ConfigError(
                f"`musubi {command}` needs --{component.option} for the task {task.name!r}: "
                f"{component.help}",
                fix=f"Add --{component.option} PATH; `musubi models show {architecture.name}` says "
                "where it is published.",
            )
    asked = {
        c.name: parse_dtype(text)
        for c in encoders
        if (text := request.dtypes.get(c.name)) is not None
    }
    dtypes = {c.name: dtype_name(asked[c.name]) if c.name in asked else c.dtype for c in encoders}
    for name, policy in request.policies.items():
        if name in dtypes and policy.storage != "native":
            dtypes[name] += " from 8 bits"  # what they encode differs from what they did in full
    options = cache_options(architecture, request.options, command)
    shared = cache_options(architecture, request.options, command, "train")
    nets = Nets(
        architecture,
        request.files,
        device=request.device,
        dtypes=asked,
        tokenizers=request.tokenizers,
        place=placer(request.policies, request.device, report=request.report),
        report=request.report,
    )
    caching = CachingRun(
        dataset=request.dataset,
        architecture=architecture,
        runtime=architecture.runtime(architecture, task, request.options),
        nets=nets,
        wanted=Wanted(
            task=task,
            encoders={c.name: identity(request.files[c.name]) for c in encoders},
            dtypes={} if request.training else dtypes,
            options=shared if request.training else options,
        ),
        report=request.report,
        dtypes=dtypes,
        options=options,
        workers=request.workers,
        skip_existing=request.skip_existing,
        keep=request.keep,
        strict=request.strict,
        me=launched(),
    )
    try:
        return cache_media(caching) if kind == "media" else cache_captions(caching)
    finally:
        nets.free_all()
