"""When memory runs out: show what each phase needs, and the one setting to change next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch

from musubi.config.options import Options
from musubi.config.train import TrainConfig
from musubi.errors import RunError
from musubi.estimate.sizes import weights_of
from musubi.estimate.step import estimate
from musubi.plan import advice, words
from musubi.plan.choose import needed, stream_counts
from musubi.plan.fit import encoders_for
from musubi.plan.networks import text
from musubi.plan.phases import phases
from musubi.plan.words import HEADS, plain, table
from musubi.plan.workload import Bucket, Workload, workload
from musubi.plugin import Architecture, Quiet
from musubi.plugin.policy import Policy

Where = Literal["train", "sample", "text", "encode", "decode", "load"]
_DOING = {
    "train": "in a training step",
    "sample": "in a denoising step",
    "text": "while encoding text",
    "encode": "while encoding a video",
    "decode": "while decoding a video",
    "load": "while loading a network",
}


@contextmanager
def explained(
    config: Options,
    architecture: Architecture,
    where: Where,
    *,
    policy: Policy,
    buckets: Sequence[Bucket] = (),
) -> Iterator[None]:
    """Turn running out of device memory into an error that says what to change.

    Args:
        config: The options of the command.
        architecture: Whose networks.
        where: Which phase runs inside.
        policy: Of the DiT.
        buckets: The video sizes; the options' own size if there are none.

    Raises:
        RunError: The device's memory is full.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        said = explain(error, config, architecture, where, policy=policy, buckets=buckets)
    else:
        return
    raise said  # raised outside: the traceback of the first error would keep its tensors alive


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device (or page-locked memory) was full."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def explain(
    error: BaseException,
    config: Options,
    architecture: Architecture,
    where: Where,
    *,
    policy: Policy,
    buckets: Sequence[Bucket] = (),
) -> RunError:
    """The error to show: the plan's table, and the next setting. As `explained` says."""
    room = device_room()
    size = f" at {max(buckets, key=lambda b: b.width * b.height * b.frames)}" if buckets else ""
    there = f" of {words.gib(room)} GiB" if room else ""
    what = f"The GPU's memory{there} is full {_DOING[where]}{size}."
    trains = where in ("train", "encode") or isinstance(config, TrainConfig)
    try:
        about = workload(
            config, architecture, trains=trains, report=Quiet(), buckets=buckets or None
        )
        encoders = encoders_for(config, architecture, about.networks)
        rows = table(phases(about, policy, encoders=encoders))
        what += "\n" + plain("What is needed", HEADS, rows)
        fix = remedy(about, policy, where, room, encoders)
    except Exception:  # whatever is wrong with the plan must not hide the fact
        first = " ".join(str(error).split()).partition(" If reserved")[0]
        return RunError(f"{what} {first}", fix="Lower the size, the frames or the batch.")
    return RunError(what, fix=fix)


def remedy(
    about: Workload,
    policy: Policy,
    where: Where,
    room: int | None,
    encoders: Mapping[str, Policy] | None = None,
) -> str:
    """The one setting to change next, as a sentence.

    Args:
        about: What runs.
        policy: Of the DiT.
        where: The phase that ran when memory was full.
        room: Bytes of the device; None: not known, then the largest saving counts.
        encoders: Component name → policy of the other networks.
    """
    if where == "text":
        return _for_text(about, encoders or {}, room)
    if where in ("encode", "decode"):
        command = "train" if about.trains else "generate"
        return advice.for_vae(about.architecture, about.options, command)
    now = _needs(about, policy)
    tried = [(changed, _needs(about, changed)) for changed in _changes(about, policy)]
    tried = [(changed, need) for changed, need in tried if need < 0.99 * now]
    if not tried:
        return "Lower the size, the frames or the batch: no setting of memory is left."
    enough = [one for one in tried if room is not None and one[1] <= room]
    changed, need = enough[0] if enough else min(tried, key=lambda one: one[1])
    dit, trains = about.architecture.dit, about.trains
    new = words.flags(changed, dit, trains=trains)
    old = words.flags(policy, dit, trains=trains)
    added = " ".join(flag for flag in new if flag not in old)
    return (
        f"Add {added}: then {words.gib(need)} GiB are needed instead of {words.gib(now)}. "
        f"Or give --vram{'' if room is None else f' {words.gib(room)}GiB'} alone, which chooses all."
    )


def _changes(about: Workload, policy: Policy) -> Iterator[Policy]:
    """Policies with one setting changed, the cheapest change first."""
    dit = about.architecture.dit
    whole = about.case.whole
    if about.trains and policy.recompute == "none":
        yield replace(policy, recompute="attention")
    if about.trains and policy.recompute != "blocks":
        yield replace(policy, recompute="blocks")
    if not whole:
        sizes = weights_of(dit, about.case.numbers, dtype=about.case.dtype, storage=policy.storage)
        counts = stream_counts(dit, [len(stack) for stack in sizes.blocks])
        for part in (0.5, 0.75, 1.0):
            streamed = counts[int(part * (len(counts) - 1))]
            if sum(streamed) > sum(policy.streamed):
                yield replace(policy, streamed=streamed)
    if about.trains and policy.recompute != "none" and not policy.offload_activations:
        yield replace(policy, offload_activations=True)
    if not whole and policy.storage == "native" and dit.traits.quantize:
        yield replace(policy, storage="fp8_scaled")
    if policy.ffn_chunks == 1 and dit.traits.per_token:
        yield replace(policy, ffn_chunks=4)
    if not policy.compile:
        yield replace(policy, compile=True)


def _needs(about: Workload, policy: Policy) -> int:
    return needed(estimate(about.case, policy, optimizer=about.optimizer))


def _for_text(about: Workload, encoders: Mapping[str, Policy], room: int | None) -> str:
    """Advice for the text encoder that needs the most memory."""
    known = [
        (network, encoders.get(c.name, Policy()))
        for c in about.architecture.of_role("text", about.task)
        if (network := about.networks.get(c.name)) is not None
    ]
    most = max(known, key=lambda one: text(about.architecture, *one, None).device)
    return advice.for_text(about.architecture, *most, room)


def device_room() -> int | None:
    """Bytes of the device that PyTorch may use: all, or the share that was set."""
    if not torch.cuda.is_available():
        return None
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    part = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    return int(total * (part() if part is not None else 1.0))
