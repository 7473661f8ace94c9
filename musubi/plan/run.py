"""The command `musubi plan`: tables of what each phase needs, and settings that fit a card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musubi.config.plan import PlanConfig
from musubi.errors import ConfigError, counted
from musubi.estimate import cards
from musubi.estimate.cards import Card
from musubi.plan import advice, sizes, words
from musubi.plan.choose import ChosenPolicy, needed
from musubi.plan.fit import check, decided_by_host, encoders_for, fitting, given
from musubi.plan.machine import device_bytes, host_room
from musubi.plan.phases import PREVIEW_DECODE, PREVIEW_STEP, SHOWN, Phase, phases
from musubi.plan.words import HEADS, gib, table
from musubi.plan.workload import Bucket, Workload, workload
from musubi.plugin import Architecture, Quiet, Report
from musubi.plugin.policy import Policy


def run(config: PlanConfig, architecture: Architecture, report: Report) -> None:
    """Show the plan; with --vram, also the settings that fit.

    Raises:
        MusubiError: Something given cannot be used, or nothing fits.
    """
    trains = config.purpose == "train"
    quiet = config.json_file == "-"
    about = workload(config, architecture, trains=trains, report=Quiet() if quiet else report)
    card = cards.of_device() if config.card is None else cards.named(config.card)
    policy = given(config, architecture.dit, trains=trains)
    check(config, about, policy)
    shown = Quiet() if quiet else report
    chosen, fit = None, []
    if config.vram is not None:
        chosen = _chosen(config, about, card, shown)
        policy = chosen.policy
        if config.dataset_config is None:
            fit = _sizes(config, about, shown)
    with shown.progress("Working out each phase", 2, unit="part") as bar:
        encoders = encoders_for(config, architecture, about.networks)
        bar.advance()
        found = phases(about, policy, encoders=encoders, card=card)
        bar.advance()
    figures = _figures(about, policy, found, card, fit)
    if config.json_file is not None and not quiet:
        Path(config.json_file).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if quiet:
        report.note(json.dumps(figures))
        return
    _tell(about, policy, found, card, chosen, encoders, config, report)
    if fit:
        report.note(f"Sizes that fit {config.vram}: {sizes.words_for(fit)}.")


def _chosen(config: PlanConfig, about: Workload, card: Card | None, report: Report) -> ChosenPolicy:
    """The settings that fit; if there are none, the error names sizes that would fit."""
    try:
        with report.progress("Trying settings", 1, unit="size") as bar:
            chosen = fitting(config, about, card, here=_is_here(config))
            bar.advance()
    except ConfigError as error:
        fit = _sizes(config, about, report)
        if not fit:
            raise
        raise ConfigError(error.what, fix=sizes.way_out(config, fit)) from error
    return chosen


def _sizes(config: PlanConfig, about: Workload, report: Report) -> list[Bucket]:
    with report.progress("Looking for sizes that fit", None, unit="size") as bar:
        return sizes.that_fit(config, about, bar, here=_is_here(config))


def title(about: Workload) -> str:
    """What the plan is for."""
    name = about.choice.variant.name if about.choice.variant else about.task.name
    doing = "training" if about.trains else "generating"
    return f"{about.architecture.title} {name}, {doing}"


def _tell(
    about: Workload,
    policy: Policy,
    found: list[Phase],
    card: Card | None,
    chosen: ChosenPolicy | None,
    encoders: Mapping[str, Policy],
    config: PlanConfig,
    report: Report,
) -> None:
    dit = about.architecture.dit
    flags = words.settings(policy, dit, trains=about.trains)
    report.table(f"{title(about)}, with {flags}", HEADS, table(found))
    rest = len(about.buckets) - SHOWN
    if rest > 0:
        report.note(f"{counted(rest, 'smaller bucket')} {'needs' if rest == 1 else 'need'} less.")
    most = max(found, key=lambda phase: phase.estimate.device)
    size = f" at {most.bucket}" if most.bucket is not None else ""
    report.note(
        f"The most is needed for {most.name}{size}: {gib(most.estimate.device)} GiB, so a card with "
        f"{gib(needed(most.estimate))} GiB free. These GiB are: "
        + ", ".join(f"{gib(n)} for {what}" for what, n in most.estimate.parts.items())
        + "."
    )
    if config.vram is None and (hint := _for_text(most, about, encoders, None)):
        report.note(hint)
    if card is not None:
        report.note(f"Seconds are those of the {card.name}, and may be off by a quarter.")
    if chosen is not None:
        swaps = [p.streamed[0] for p in encoders.values() if any(p.streamed)]
        more = f" --text_encoder_swap {max(swaps)}" if swaps else ""
        report.note(f"The fastest settings that fit {config.vram}: {flags}{more}")
        report.note(_host_memory(config, chosen))
        room = device_bytes(config.vram or "0")
        for phase in found:
            if needed(phase.estimate) > room:
                report.warn(_too_large(phase, about, encoders, room))


def _is_here(config: PlanConfig) -> bool:
    """Whether the plan is for this computer: nothing names another one."""
    return config.card is None and (config.vram or "").strip().lower() == "auto"


def _host_memory(config: PlanConfig, chosen: ChosenPolicy) -> str:
    """Which limit of host memory the settings assume."""
    needs = f"They need {gib(chosen.estimate.host)} GiB of host memory"
    room = host_room() if _is_here(config) else None
    if config.ram is not None:
        return f"{needs}, and --ram allows {config.ram}.{decided_by_host(config, chosen)}"
    if room is not None:
        return f"{needs}, and {gib(room)} GiB can be used here.{decided_by_host(config, chosen)}"
    return (
        f"{needs}: no limit is assumed. --ram SIZE sets one; the command itself stays below what is "
        "free where it runs."
    )


def _too_large(phase: Phase, about: Workload, encoders: Mapping[str, Policy], room: int) -> str:
    """A phase of another network that does not fit, and what would help."""
    architecture = about.architecture
    hint = _for_text(phase, about, encoders, room)
    if phase.name in ("encode", "decode", PREVIEW_DECODE):
        command = "generate" if not about.trains else "train"
        hint = advice.for_vae(architecture, about.options, command)
    if about.previews and phase.name in (PREVIEW_STEP, PREVIEW_DECODE):
        hint = f"{hint} Or ask for smaller previews in --sample_prompts.".lstrip()
    need = gib(needed(phase.estimate))
    return f"The phase {phase.name!r} needs a card with {need} GiB free. {hint}".rstrip()


def _for_text(
    phase: Phase, about: Workload, encoders: Mapping[str, Policy], room: int | None
) -> str:
    """Advice for a text encoder; empty if the phase is of another network."""
    for component in about.architecture.of_role("text", about.task):
        if phase.name == f"text by the {component.name}":
            network, policy = about.networks[component.name], encoders.get(component.name, Policy())
            return advice.for_text(about.architecture, network, policy, room)
    return ""


def _figures(
    about: Workload, policy: Policy, found: list[Phase], card: Card | None, fit: list[Bucket]
) -> dict[str, Any]:
    dit = about.architecture.dit
    return {
        "arch": about.architecture.name,
        "task": about.task.name,
        "variant": about.choice.variant.name if about.choice.variant else None,
        "for": "train" if about.trains else "generate",
        "policy": dataclasses.asdict(policy),
        "flags": words.flags(policy, dit, trains=about.trains),
        "card": None if card is None else card.name,
        "fits": [dataclasses.asdict(bucket) for bucket in fit],
        "phases": [
            {
                "phase": phase.name,
                "size": None if phase.bucket is None else dataclasses.asdict(phase.bucket),
                "device": phase.estimate.device,
                "needs": needed(phase.estimate),
                "host": phase.estimate.host,
                "pinned": phase.estimate.pinned,
                "seconds": phase.estimate.seconds,
                "parts": dict(phase.estimate.parts),
            }
            for phase in found
        ],
    }
