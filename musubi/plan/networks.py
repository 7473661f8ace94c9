"""What the other networks need: text encoders, and the VAE when encoding and decoding."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from musubi.estimate.cards import Card, started
from musubi.estimate.figures import work_of
from musubi.estimate.record import filled
from musubi.estimate.sizes import weights_of
from musubi.estimate.step import LIBRARIES, PROCESS, Estimate
from musubi.estimate.trace import Recorder, Trace
from musubi.plan import captions
from musubi.plan.workload import Bucket, Network
from musubi.plugin import Architecture, Clip, Component, Task
from musubi.plugin.policy import Policy
from musubi.weights.meta import on_meta


def encoding(
    architecture: Architecture,
    task: Task,
    options: Mapping[str, Any],
    used: Sequence[Network],
    bucket: Bucket,
    card: Card | None,
) -> Estimate:
    """Frames to latents, one clip at a time, by the networks that make media records."""
    clip = _clip(task, bucket)
    runtime = architecture.runtime(architecture, task, options)
    key = ("encode", id(architecture), task.name, bucket, str(sorted(options.items(), key=str)))
    return _media(used, key, lambda nets: runtime.encode_media(nets, [clip]), card)


def decoding(
    architecture: Architecture,
    task: Task,
    options: Mapping[str, Any],
    used: Sequence[Network],
    bucket: Bucket,
    card: Card | None,
) -> Estimate:
    """Latents to frames."""
    shape = (1, *task.shape.latent_shape(bucket.width, bucket.height, bucket.frames))
    runtime = architecture.runtime(architecture, task, options)
    key = ("decode", id(architecture), task.name, bucket, str(sorted(options.items(), key=str)))
    return _media(used, key, lambda nets: _shown(runtime.decode(nets, torch.empty(shape))), card)


def _clip(task: Task, bucket: Bucket) -> Clip:
    """A clip of this size, with all required inputs."""
    frames = np.zeros((bucket.frames, bucket.height, bucket.width, 3), dtype=np.uint8)
    inputs = {
        one.name: (frames if one.kind == "video" else frames[:1],)
        for one in task.inputs
        if one.required and one.in_datasets
    }
    return Clip(name="plan", frames=frames, length=bucket.frames, inputs=inputs)


def _shown(pieces: Iterable[torch.Tensor]) -> None:
    """Consume each piece as generation does, so that no piece stays on the device."""
    for _ in pieces:
        pass


# Recordings of this process: what was recorded → the components, so that their ids stay their own,
# and the recording.
_traces: dict[Hashable, tuple[list[Component], Trace]] = {}


def _media(used: Sequence[Network], key: Hashable, act: Any, card: Card | None) -> Estimate:
    key = (key, tuple(_identity(network) for network in used))
    if key not in _traces:
        _traces[key] = ([network.component for network in used], _record(used, act))
    trace = _traces[key][1]
    weights = sum(weights_of(n.component, n.numbers, dtype=n.dtype).total for n in used)
    parts = {"activations": trace.peak, "weights": weights + LIBRARIES}
    return Estimate(
        device=sum(parts.values()),
        host=PROCESS,
        pinned=0,
        seconds=None if card is None else _seconds(trace, card),
        parts=dict(sorted(parts.items(), key=lambda part: -part[1])),
    )


def _identity(network: Network) -> Hashable:
    numbers = tuple((k, str(v)) for k, v in sorted(network.numbers.items()))
    return (id(network.component), numbers, network.dtype)


def _record(used: Sequence[Network], act: Any) -> Trace:
    recorder = Recorder()
    modules = {n.component.name: on_meta(n.component, n.numbers, n.dtype) for n in used}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for module in modules.values():
            filled(module)
        with recorder:
            act(captions.Recorded(modules))
    return recorder.trace


def _seconds(trace: Trace, card: Card) -> float:
    """Seconds of operations that run one by one: the larger of the device's time and the host's
    time to start them.
    """
    work = work_of(trace.ops)
    return max(card.seconds(work), started(work))


def text(
    architecture: Architecture, network: Network, policy: Policy, card: Card | None
) -> Estimate:
    """One caption through a text encoder: its weights, and what the longest caption needs."""
    component = network.component
    sizes = weights_of(component, network.numbers, dtype=network.dtype, storage=policy.storage)
    there, away = sizes.placed(policy.streamed)
    trace = captions.record(architecture, network, eight=policy.storage != "native")
    parts = {"weights": there + LIBRARIES, "activations": trace.peak}
    seconds = None if card is None else max(_seconds(trace, card), away / card.link)
    return Estimate(
        device=sum(parts.values()), host=PROCESS + away, pinned=away, seconds=seconds, parts=parts
    )


def loading(network: Network, policy: Policy) -> Estimate:
    """Loading a network from its file: its weights, and one tensor in float32 in addition."""
    component = network.component
    sizes = weights_of(component, network.numbers, dtype=network.dtype, storage=policy.storage)
    there, away = sizes.placed(policy.streamed)
    module = on_meta(component, network.numbers, network.dtype)
    most = max((p.numel() for p in module.parameters()), default=0)
    work = most * (network.dtype.itemsize + (8 if policy.storage != "native" else 0))
    parts = {"weights": there, "one tensor": work}
    return Estimate(
        device=sum(parts.values()), host=PROCESS + away + (1 << 30), pinned=away, parts=parts
    )
