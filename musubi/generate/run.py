"""The command `musubi generate`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from musubi.cache.tasks import device_of
from musubi.config import prompts
from musubi.config.generate import GenerateConfig
from musubi.config.memory import compiler_words
from musubi.config.options import expert_ending, own_options, paths, tokenizers
from musubi.config.task import Choice, choose_task
from musubi.errors import ConfigError, MusubiError, system_reason
from musubi.generate import loras
from musubi.generate.inputs import has_media
from musubi.generate.loras import ChosenLora
from musubi.generate.make import Generation
from musubi.generate.pipeline import Pipeline
from musubi.memory.apply import placer
from musubi.memory.compiled import Compiler
from musubi.nn import attention
from musubi.plan.fit import encoders_for, policy_for
from musubi.plugin import Architecture, Report, Task
from musubi.weights.dtypes import parse_dtype
from musubi.weights.load import Inspection, check_file
from musubi.weights.nets import Nets


def run(config: GenerateConfig, architecture: Architecture, report: Report) -> None:
    """Generate, decode, or save a merged model, as the options say.

    Raises:
        MusubiError: An option or file cannot be used. In a batch, it is raised after everything
            else is done.
    """
    if config.save_merged_model is not None:
        loras.save_merged(config, architecture, report)
        return
    if config.from_file is not None:
        config = _with_tasks_of_prompts(config, architecture, Path(config.from_file))
    job = _open(config, architecture, report)
    with attention.use(config.attn_mode, split=config.split_attn):
        if config.latent_path:
            if config.prompt is not None:
                report.note("--prompt is not read: --latent_path has its latents already.")
            job.decode([Path(p) for p in config.latent_path])
        elif config.interactive:
            job.converse()
        elif config.from_file is not None:
            job.batch(Path(config.from_file))
        else:
            job.prompt()


def _with_tasks_of_prompts(
    config: GenerateConfig, architecture: Architecture, path: Path
) -> GenerateConfig:
    """Apply options of the prompt file that choose the task as if they were on the command line."""
    asked = _readable(path, prompts.grammar(architecture))
    meant = [o.name for o in architecture.options if o.task and "generate" in o.commands]
    said = {
        name: asked[0][name]
        for name in meant
        if asked and not getattr(config, name) and all(one.get(name) for one in asked)
    }
    return config.model_copy(update=said)


def _readable(path: Path, grammar: prompts.Grammar) -> list[Mapping[str, Any]]:
    """The readable prompts of a file; the batch reports the others."""
    found: list[Mapping[str, Any]] = []
    for _, read in prompts.read_entries(path, grammar):
        with suppress(MusubiError):
            found.append(read())
    return found


def _open(config: GenerateConfig, architecture: Architecture, report: Report) -> Generation:
    given = paths(config, architecture)
    own = own_options(config, architecture)
    if config.latent_path:
        choice = choose_task(architecture, config.task, given=given, options=own)
        found: dict[str, Inspection] = {}
    else:
        choice, found = _inspected(config, architecture, given, own)
    chosen = {name: _loras(config, architecture, name, found[name], report) for name in found}
    used = _needed(config, architecture, choice.task)
    for name in used:
        architecture.path_of(name, given)
    for name in used:
        check_file(architecture.component(name), given[name], others=architecture.components)
    _say_unused(config, architecture, [*found, *used], report)
    _say_experts(config, choice.task, found, report)
    assert config.save_path is not None  # the config's own check
    folder = _writable(Path(config.save_path))
    device = device_of(config.device)
    policy = policy_for(config, architecture, trains=False, buckets=(), report=report)
    attached = config.lora_mode == "attach"
    merging = {
        n: loras.merging_rest(c) if attached else loras.merging(c) for n, c in chosen.items() if c
    }
    nets = Nets(
        architecture,
        given,
        device=device,
        dtypes=_dtypes(config, architecture),
        tokenizers=tokenizers(config, architecture),
        transforms={name: found for name, found in merging.items() if found is not None},
        place=placer(
            {
                **encoders_for(config, architecture),
                **{d.name: policy for d in architecture.of_role("dit", choice.task)},
            },
            device,
            compiler=Compiler(**compiler_words(config)),
            report=report,
        ),
        loaded=lambda name, module: (
            loras.attach(module, chosen.get(name, ())) if attached else None
        ),
        report=report,
    )
    for name in used:
        if architecture.component(name).tokenizer is not None:
            nets.tokenizer(name)  # a missing one is reported before anything large is loaded
    pipeline = Pipeline(architecture, choice.task, own, nets, device=device, report=report)
    pipeline.park_experts = config.offload_inactive_dit
    facts = {
        "architecture": architecture.name,
        "task": choice.variant.name if choice.variant else choice.task.name,
        "files": {name: path.name for name, path in given.items()},
        "loras": [
            {
                "file": c.file.path.name,
                "multiplier": c.multiplier,
                **({} if name == architecture.dit.name else {"network": name}),
            }
            for name, files in chosen.items()
            for c in files
        ],
    }
    return Generation(config, architecture, choice, pipeline, found, folder, facts, policy, report)


def _inspected(
    config: GenerateConfig,
    architecture: Architecture,
    given: Mapping[str, Path],
    own: Mapping[str, Any],
) -> tuple[Choice, dict[str, Inspection]]:
    """The task, and what the file of each of its denoisers holds."""
    denoisers = [c for c in architecture.components if c.role == "dit" and c.name in given]
    if not denoisers:
        architecture.path_of(architecture.dit.name, given)
    found: dict[str, Inspection] = {}
    choices: list[Choice] = []
    for component in denoisers:
        path = given[component.name]
        found[component.name] = check_file(component, path, others=architecture.components)
        numbers = found[component.name].numbers
        choices.append(
            choose_task(architecture, config.task, numbers, path, given=given, options=own)
        )
    choice = choices[0]
    for component in denoisers:
        if component.name not in choice.task.denoisers:
            raise ConfigError(
                f"The task {choice.task.name!r} has no {component.name}.",
                fix=f"Leave out --{component.name}, or give another --task.",
            )
    return choice, found


def _loras(
    config: GenerateConfig,
    architecture: Architecture,
    name: str,
    found: Inspection,
    report: Report,
) -> list[ChosenLora]:
    ending = expert_ending(architecture, architecture.component(name))
    return loras.choose(config, architecture, found.shapes, report, denoiser=name, ending=ending)


def _say_unused(
    config: GenerateConfig, architecture: Architecture, used: Sequence[str], report: Report
) -> None:
    """Say which files were given and will not be read."""
    read = {architecture.component(name).option for name in used}
    for component in architecture.components:
        option = component.option
        typed = option in config.model_fields_set and getattr(config, option, None)
        if typed and option not in read:
            read.add(option)
            report.note(f"--{option} is not read: nothing here needs the {component.name}.")


def _say_experts(
    config: GenerateConfig, task: Task, found: Mapping[str, Inspection], report: Report
) -> None:
    """Show how several denoisers are used, and which options for them have no effect."""
    if config.offload_inactive_dit and len(found) < 2:
        report.warn("--offload_inactive_dit changes nothing: there is one denoiser.")
    absent = [name for name in task.denoisers if name not in found]
    if found and absent:
        report.warn(
            f"The task {task.name!r} has a {' and a '.join(absent)} too, which was not given: "
            f"{next(iter(found))} denoises at every noise level."
        )


def _needed(config: GenerateConfig, architecture: Architecture, task: Task) -> list[str]:
    """Names of the networks that will be used, so that a missing file is reported before any is loaded."""
    vae = [c.name for c in architecture.of_role("vae", task)]
    if config.latent_path:
        return vae
    text = [c.name for c in architecture.of_role("text", task)]
    started = has_media(own_options(config, architecture), task)
    image = [c.name for c in architecture.of_role("image", task)] if started else []
    return [*text, *image, *(vae if config.output_type != "latent" or started else ())]


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ConfigError(
            f"The folder {folder} of --save_path cannot be written: {system_reason(error)}.",
            fix="Give another folder.",
        ) from error


def _dtypes(config: GenerateConfig, architecture: Architecture) -> dict[str, torch.dtype]:
    flags = {
        "dit": config.dit_dtype,
        "vae": config.vae_dtype,
        "text": config.text_encoder_dtype,
        "image": config.image_encoder_dtype,
    }
    given = {c.name: flags.get(c.role) for c in architecture.components}
    return {name: parse_dtype(text) for name, text in given.items() if text is not None}
