"""Which video sizes fit a card. Memory grows linearly with the tokens, so few recordings are enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from musubi.config.plan import PlanConfig
from musubi.errors import ConfigError
from musubi.estimate import cards
from musubi.estimate.sizes import weights_of
from musubi.estimate.step import estimate
from musubi.plan.choose import SLICES, needed, stream_counts
from musubi.plan.fit import decided, fitting, given, may_compile
from musubi.plan.machine import device_bytes
from musubi.plan.workload import Bucket, Workload
from musubi.plugin.policy import Policy
from musubi.plugin.report import Progress

USUAL = ((832, 480), (640, 384), (480, 320), (352, 256))
"""Common training sizes on consumer cards; larger ones are rarely worth the time."""
_LARGE = ((1280, 720),)
_TOLD = 3


def that_fit(
    config: PlanConfig, about: Workload, progress: Progress, *, here: bool
) -> list[Bucket]:
    """A few sizes that fit `--vram`, each with as many frames as fit, the largest first.

    If the requested size does not fit with all its frames, no larger size is tried.

    Args:
        config: The options, with `--vram`.
        about: The workload; its largest bucket is the requested size.
        progress: A progress bar, moved by one for each size that was tried.
        here: It runs on this computer: without `--ram`, what the host has free is the limit.
    """
    room = device_bytes(config.vram or "0")
    policy = _leanest(config, about)
    asked = about.buckets[0]
    least = Bucket(*_sizes(about)[-1], 1, asked.batch)

    def need(bucket: Bucket) -> int:
        progress.advance()
        return needed(estimate(about.at(bucket), policy, optimizer=about.optimizer))

    low, high = need(least), need(asked)
    tokens = _tokens(about, asked) - _tokens(about, least)
    if low > room or tokens <= 0:
        return []
    each = max(1.0, (high - low) / tokens)  # bytes a token
    most = _tokens(about, least) + (room - low) / each
    found: list[Bucket] = []
    for width, height in _sizes(about):
        if high > room and width * height > asked.width * asked.height:
            continue
        for frames in _lengths(about, width, height, most):
            bucket = Bucket(width, height, frames, asked.batch)
            if need(bucket) <= room and _host_fits(config, about, bucket, here):
                found.append(bucket)
                break
        if len(found) == _TOLD or (found and found[-1].frames == asked.frames):
            break
    return found


def words_for(found: Sequence[Bucket]) -> str:
    """`832x480 with 49 frames, 640x384 with 81 frames`."""
    return ", ".join(
        f"{b.width}x{b.height}" + (f" with {b.frames} frames" if b.frames > 1 else "")
        for b in found
    )


def way_out(config: PlanConfig, found: Sequence[Bucket]) -> str:
    """What to write when nothing fits at the asked size."""
    verb = "fits" if len(found) == 1 else "fit"
    first = found[0]
    if config.dataset_config is not None:
        how = (
            f"in the dataset file, resolution = [{first.width}, {first.height}] and at most "
            f"{first.frames} frames"
        )
    else:
        how = f"--width {first.width} --height {first.height} --frames {first.frames}"
    return f"{words_for(found)} {verb}: write {how}."


def _leanest(config: PlanConfig, about: Workload) -> Policy:
    """The policy that needs the least device memory, among those that the planner may choose."""
    dit, case = about.architecture.dit, about.case
    fixed = decided(config, given(config, dit, trains=about.trains))
    trains = about.trains
    storage = fixed.get("storage", "native")
    sizes = weights_of(dit, case.numbers, dtype=case.dtype, storage=storage)
    streamed = () if case.whole else stream_counts(dit, [len(stack) for stack in sizes.blocks])[-1]
    lean = Policy(
        streamed=streamed,
        recompute="blocks" if trains else "none",
        offload_activations=trains,
        ffn_chunks=SLICES if trains and dit.traits.per_token else 1,
        compile=may_compile(),
    )
    return replace(lean, **fixed)


def _sizes(about: Workload) -> list[tuple[int, int]]:
    """The asked size and the usual ones, the largest first."""
    asked, step = about.buckets[0], about.task.shape.side
    usual = [(_near(w, step), _near(h, step)) for w, h in (*_LARGE, *USUAL)]
    both = dict.fromkeys([(asked.width, asked.height), *usual])
    return sorted(both, key=lambda size: -size[0] * size[1])


def _near(side: int, step: int) -> int:
    return max(step, round(side / step) * step)


def _lengths(about: Workload, width: int, height: int, most: float) -> Iterator[int]:
    """The most frames that may fit, then fewer: the guess is nearly right."""
    period, longest = about.task.shape.period, about.buckets[0].frames
    one = _tokens(about, Bucket(width, height, 1, about.buckets[0].batch))
    latent = min(int(most / one), (longest - 1) // period + 1)
    for less in (latent, latent - 1, latent - 3):
        if less >= 1 and (less > 1 or longest == 1):
            yield (less - 1) * period + 1


def _tokens(about: Workload, bucket: Bucket) -> int:
    period = about.task.shape.period
    return bucket.width * bucket.height * ((bucket.frames - 1) // period + 1) * bucket.batch


def _host_fits(config: PlanConfig, about: Workload, bucket: Bucket, here: bool) -> bool:
    if config.ram is None and not here:
        return True
    at = replace(about, buckets=(bucket,), case=about.at(bucket))
    try:
        fitting(config, at, cards.of_device(), here=here)
    except ConfigError:
        return False
    return True
