"""The plan as a table."""

from __future__ import annotations

from collections.abc import Sequence

from musubi.plan.phases import Phase
from musubi.plan.words import gib

HEADS = ("phase", "size", "device GiB", "host GiB", "pinned GiB", "seconds", "mostly")


def table(found: Sequence[Phase]) -> list[tuple[str, ...]]:
    """The phases as rows for `HEADS`."""
    return [
        (
            phase.name,
            "" if phase.bucket is None else str(phase.bucket),
            gib(phase.estimate.device),
            gib(phase.estimate.host),
            gib(phase.estimate.pinned),
            "" if phase.estimate.seconds is None else f"{phase.estimate.seconds:.2f}",
            phase.estimate.dominant,
        )
        for phase in found
    ]


def plain(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as lines of text, for a message; columns without a word in them are left out."""
    used = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    lines = [[heads[i] for i in used], *[[row[i] for i in used] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(used))]
    shown = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([f"{title}:", *[f"  {line.rstrip()}" for line in shown]])
