"""The memory that previews need during training, while the network and the trained weights stay on
the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from musubi.estimate.cards import Card
from musubi.estimate.record import Attach
from musubi.estimate.sizes import weights_of
from musubi.estimate.step import Estimate, estimate
from musubi.plan import networks
from musubi.plan.requests import Request
from musubi.plan.workload import Bucket, Workload, sized
from musubi.plugin.policy import Policy


@dataclass(frozen=True)
class Shown:
    """Attaches the trained weights to a network that only predicts, without gradients."""

    attach: Attach

    def __call__(self, module: nn.Module) -> Sequence[nn.Parameter]:
        self.attach(module)
        return []


class PreviewNeeds:
    """The previews of a training run.

    Args:
        about: The workload of the run.
        calls: Size of each preview → network calls per step. There is at least one preview.

    Attributes:
        buckets: The sizes of the previews, the largest first.
    """

    def __init__(self, about: Workload, calls: Mapping[Bucket, int]) -> None:
        self._about = about
        self._calls = calls
        self.buckets = tuple(sorted(calls, key=_volume, reverse=True))

    @classmethod
    def of(cls, about: Workload) -> PreviewNeeds | None:
        """The previews of a run; None if the run makes no previews."""
        calls: dict[Bucket, int] = {}
        for ask in about.previews:
            bucket = _bucket(ask)
            calls[bucket] = max(ask.calls, calls.get(bucket, 1))
        return cls(about, calls) if calls else None

    def __call__(self, policy: Policy) -> Iterator[Estimate]:
        """Estimates that must fit with a policy of the network: a step and the decoding of the
        largest preview.
        """
        yield self.step(self.buckets[0], policy, None)
        decoding = self.decoding(policy, None)
        if decoding is not None:
            yield decoding

    def step(self, bucket: Bucket, policy: Policy, card: Card | None) -> Estimate:
        """A denoising step at this size."""
        about = self._about
        assert about.case.attach is not None
        half = about.case.dtype in (torch.bfloat16, torch.float16)
        case = replace(
            sized(about.case, bucket),
            attach=Shown(about.case.attach),
            shown=True,
            calls=self._calls[bucket],
            compute=about.case.dtype if half else None,  # previews take no --mixed_precision
        )
        # Nothing is kept for a backward pass, so recomputation does not matter.
        plain = replace(policy, recompute="none", offload_activations=False)
        found = estimate(case, plain, card=card)
        return self._beside(found, policy, self._at_rest(policy, names=("what is trained",)))

    def decoding(self, policy: Policy, card: Card | None) -> Estimate | None:
        """Decoding of the largest preview; None if the VAE is unknown."""
        used = self._about.used("vae")
        if not used:
            return None
        about = self._about
        found = networks.decoding(
            about.architecture, about.task, about.options, used, self.buckets[0], card
        )
        resting = self._at_rest(policy, names=("weights", "what is trained"))
        if "weights" in resting:
            resting["the DiT's weights"] = resting.pop("weights")
        return self._beside(found, policy, resting)

    def _at_rest(self, policy: Policy, names: Sequence[str]) -> dict[str, int]:
        """What the run keeps on the device during previews."""
        parts = self._run(policy).parts
        return {name: parts[name] for name in names if name in parts}

    def _beside(self, found: Estimate, policy: Policy, more: Mapping[str, int]) -> Estimate:
        """The estimate of a phase, plus what the run keeps, plus the VAE on the host."""
        run = self._run(policy)
        used = self._about.used("vae")
        waits = sum(weights_of(n.component, n.numbers, dtype=n.dtype).total for n in used)
        parts = {**found.parts, **more}
        return replace(
            found,
            device=sum(parts.values()),
            host=run.host + waits,
            pinned=run.pinned,
            parts=dict(sorted(parts.items(), key=lambda part: -part[1])),
        )

    def _run(self, policy: Policy) -> Estimate:
        """The memory of the run between two steps, when nothing is saved for a backward pass."""
        plain = replace(policy, offload_activations=False)
        return estimate(self._about.case, plain, optimizer=self._about.optimizer)


def _bucket(ask: Request) -> Bucket:
    return Bucket(ask.width, ask.height, ask.frames)


def _volume(bucket: Bucket) -> tuple[int, int, int, int]:
    volume = bucket.width * bucket.height * bucket.frames
    return (volume, bucket.frames, bucket.width, bucket.height)
