"""Check every file of a dataset: whether it is used, or why not; sizes, frames and steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from musubi.data import clips
from musubi.data.clips import ClipPlan
from musubi.data.survey import Surveyed, survey_of
from musubi.errors import DataError, counted
from musubi.plugin.architecture import Architecture
from musubi.plugin.report import Report

_SHOWN = 3
"""Nearest misses in an error: enough to see the pattern."""


def run(config: Any, architecture: Architecture, report: Report) -> None:
    """Account for every file: what is used, and the one reason of what is not.

    Of datasets whose files are gone, and which are trained on from their records, only that is said.

    Args:
        config: A `CacheCheckConfig`.
        architecture: Whose sizes and lengths are meant.
        report: Shows the results.

    Raises:
        ConfigError: The dataset file cannot be used.
        DataError: It gives nothing to train on.
    """
    given = {"batch_size": config.batch_size}
    task, found = survey_of(config, architecture, report, command_line=given)
    rate = task.shape.frame_rate
    if not found:
        return
    report.table(
        "Datasets",
        ("number", "kind", "from", "files used", "left out", "clips", "repeats", "batch size"),
        [
            (
                one.entry.index + 1,
                one.entry.kind,
                one.entry.place,
                one.used,
                len(one.skipped),
                len(one.plans),
                one.entry.num_repeats,
                one.entry.batch_size,
            )
            for one in found
        ],
    )
    left_out(found, report)
    others = [(one.entry.index + 1, s.path.name, s.reason) for one in found for s in one.others]
    if others:
        report.table("Not part of the dataset", ("dataset", "file", "reason"), others)
    if not any(one.plans for one in found):
        raise nothing(found)
    for one in found:
        for said in clips.conversions(one.plans, one.entry, rate):
            report.note(f"Dataset {one.entry.index + 1}: {said}")
        for said in _too_short(one, rate):
            report.note(f"Dataset {one.entry.index + 1}: {said}")
        if not one.plans:
            report.warn(str(nothing([one])))
    _buckets(found, report)


def left_out(found: Sequence[Surveyed], report: Report) -> None:
    """Show the files that give no clip, each with its reason."""
    rows = [(one.entry.index + 1, s.path.name, s.reason) for one in found for s in one.skipped]
    if rows:
        report.table("Left out", ("dataset", "file", "reason"), rows)


def nothing(found: Sequence[Surveyed]) -> DataError:
    """The error for datasets that give no clip: the nearest misses, and what to change."""
    skipped = [s for one in found for s in one.skipped]
    others = [s for one in found for s in one.others]
    places = " and ".join(str(one.entry.place) for one in found)
    near = skipped or others
    if not near:
        return DataError(
            f"There is nothing to train on: {places} holds no file.",
            fix="Check the directory in the dataset file.",
        )
    said = " ".join(s.reason for s in near[:_SHOWN])
    more = f" And {len(near) - _SHOWN} more." if len(near) > _SHOWN else ""
    return DataError(f"There is nothing to train on in {places}. {said}{more}", fix=_advice(found))


def _advice(found: Sequence[Surveyed]) -> str:
    """What most likely has to be changed, seen over all files."""
    skipped = [s for one in found for s in one.skipped]
    if skipped and all(" has no caption" in s.reason for s in skipped):
        one = next(o for o in found if o.skipped)
        return (
            f"Captions are looked for beside the files, ending in {one.entry.caption_extension!r}."
            if one.entry.directory
            else "Give each line a caption."
        )
    if skipped:
        return "Mend these, and see `musubi cache check` for all of them."
    return "Check the directory, and whether images or videos are meant."


def _too_short(one: Surveyed, rate: float) -> list[str]:
    """Lengths that some of the used videos do not reach, a sentence each."""
    if one.entry.kind == "image" or one.entry.frame_extraction == "full":
        return []
    totals = {p.source.path: p.total for p in one.plans}
    out: list[str] = []
    for length in one.entry.target_frames:
        short = [total for total in totals.values() if total < length]
        if short:
            out.append(
                f"{len(short)} of {counted(len(totals), 'video')} {'gives' if len(short) == 1 else 'give'} no "
                f"clip of {counted(length, 'frame')}; the longest of these "
                f"has {max(short)} at {rate:g} fps."
            )
    return out


def _buckets(found: Sequence[Surveyed], report: Report) -> None:
    rows: list[tuple[object, ...]] = []
    batches = 0
    for one in found:
        size, repeats = one.entry.batch_size, one.entry.num_repeats
        counts = Counter(_key(p) for p in one.plans)
        for (bucket, length, inputs), count in sorted(counts.items()):
            items = count * repeats
            number = -(-items // size)
            batches += number
            shown = f"{bucket[0]}x{bucket[1]}"
            rows.append((one.entry.index + 1, shown, length, inputs, count, items, number))
            if size > 1 and items < size:
                report.warn(
                    f"Dataset {one.entry.index + 1}: the bucket {shown} with {length} "
                    f"frame{'s' if length > 1 else ''} has {counted(items, 'item')}, fewer than the batch size, {size}: "
                    "its batches are short. Add files of this shape, repeats, or lower batch_size."
                )
    heads = ("dataset", "bucket", "frames", "inputs", "clips", "items an epoch", "batches")
    report.table("Buckets", heads, rows)
    total = sum(len(one.plans) for one in found)
    frames = sum(len(p.frames) for one in found for p in one.plans)
    report.note(
        f"{counted(total, 'clip')} with {counted(frames, 'frame')} in all. An epoch is "
        f"{counted(batches, 'batch', 'batches')}: as many steps on one process without "
        "--gradient_accumulation_steps."
    )


def _key(plan: ClipPlan) -> tuple[tuple[int, int], int, int]:
    return plan.bucket, len(plan.frames), len(plan.source.paths) - 1
