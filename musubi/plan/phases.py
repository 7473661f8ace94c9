"""The phases of a command in order, each with the memory and time that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from musubi.estimate.cards import Card
from musubi.estimate.step import Estimate, estimate
from musubi.plan import networks
from musubi.plan.previews import PreviewNeeds
from musubi.plan.workload import Bucket, Workload
from musubi.plugin.architecture import Role
from musubi.plugin.policy import Policy

PREVIEW_STEP, PREVIEW_DECODE = "a step of a preview", "decode a preview"
# How many of the largest buckets are planned; the others need less.
SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase.

    Attributes:
        name: What happens.
        bucket: The video size; None if the size does not matter.
        estimate: The memory and time that the phase needs.
    """

    name: str
    bucket: Bucket | None
    estimate: Estimate


def phases(
    subject: Workload,
    policy: Policy,
    *,
    encoders: Mapping[str, Policy] | None = None,
    card: Card | None = None,
) -> list[Phase]:
    """Every phase of training or generating, in the order they run, the largest bucket first.

    Args:
        subject: The planned workload.
        policy: Of the DiT.
        encoders: Component name → policy of the other networks.
        card: The card, whose speeds give the seconds.
    """
    found = _texts(subject, encoders or {}, card)
    if subject.trains:
        found = [*_encoding(subject, card), *found]
    dit = subject.networks[subject.architecture.dit.name]
    found.append(Phase(name="load the dit", bucket=None, estimate=networks.loading(dit, policy)))
    name = "a training step" if subject.trains else "a denoising step"
    for bucket in subject.buckets[:SHOWN]:
        need = estimate(subject.at(bucket), policy, optimizer=subject.optimizer, card=card)
        found.append(Phase(name=name, bucket=bucket, estimate=need))
    if not subject.trains:
        found += _decoding(subject, card)
    drawn = PreviewNeeds.of(subject)
    if drawn is not None:
        for bucket in drawn.buckets[:SHOWN]:
            need = drawn.step(bucket, policy, card)
            found.append(Phase(name=PREVIEW_STEP, bucket=bucket, estimate=need))
        need = drawn.decoding(policy, card)
        if need is not None:
            found.append(Phase(name=PREVIEW_DECODE, bucket=drawn.buckets[0], estimate=need))
    return found


def highest(found: list[Phase]) -> Phase:
    """The phase that needs the most device memory."""
    return max(found, key=lambda phase: phase.estimate.device)


def _texts(subject: Workload, encoders: Mapping[str, Policy], card: Card | None) -> list[Phase]:
    found = []
    for component in subject.architecture.of_role("text", subject.task):
        network = subject.networks.get(component.name)
        if network is not None:
            policy = encoders.get(component.name, Policy())
            need = networks.text(subject.architecture, network, policy, card)
            found.append(Phase(name=f"text by the {component.name}", bucket=None, estimate=need))
    return found


def _encoding(subject: Workload, card: Card | None) -> list[Phase]:
    return _of_media(subject, card, "encode", ("vae", "image"), networks.encoding)


def _decoding(subject: Workload, card: Card | None) -> list[Phase]:
    return _of_media(subject, card, "decode", ("vae",), networks.decoding)


def _of_media(
    subject: Workload,
    card: Card | None,
    name: str,
    roles: Sequence[Role],
    needs: Callable[..., Estimate],
) -> list[Phase]:
    used = subject.used(*roles)
    if not used:
        return []
    bucket = subject.buckets[0]  # the others need less
    need = needs(subject.architecture, subject.task, subject.options, used, bucket, card)
    return [Phase(name=name, bucket=bucket, estimate=need)]
