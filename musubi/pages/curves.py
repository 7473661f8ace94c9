"""Numbers of a run as curves: smoothed over all steps, then thinned to what a page can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from musubi.pages import columns
from musubi.pages.columns import Column

POINTS = 1200
"""Points of a curve on a page."""
HALF_LIFE = 1 / 25
"""Part of the steps after which an entry of the smoothed curve counts half."""

_SHOWN = (
    columns.LOSS,
    columns.VALIDATION,
    columns.RATE,
    columns.ADAPTED_RATE,
    columns.GRADIENT,
    columns.SECONDS,
    columns.DEVICE_MEMORY,
    columns.HOST_MEMORY,
)


def series(entries: Sequence[Mapping[str, Any]], most: int = POINTS) -> list[dict[str, Any]]:
    """Each column that has numbers, as {key, title, unit, x, y, smooth?}."""
    return [one for column in _SHOWN if (one := _one(column, entries, most)) is not None]


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential mean that starts unbiased.

    >>> smoothed([2.0, 2.0, 2.0])
    [2.0, 2.0, 2.0]
    """
    keep = 0.5 ** (1 / max(1.0, len(values) * HALF_LIFE))
    out: list[float] = []
    total = weight = 0.0
    for value in values:
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        out.append(total / weight)
    return out


def thinned(x: Sequence[int], y: Sequence[float], most: int) -> tuple[list[int], list[float]]:
    """At most `most` points; each stands for equally many, by their mean, at the last one's place.

    >>> thinned([1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0], 2)
    ([2, 4], [2.0, 6.0])
    """
    size = -(-len(x) // most)
    if size <= 1:
        return list(x), list(y)
    cuts = range(0, len(x), size)
    return (
        [x[min(i + size, len(x)) - 1] for i in cuts],
        [sum(y[i : i + size]) / len(y[i : i + size]) for i in cuts],
    )


def _one(column: Column, entries: Sequence[Mapping[str, Any]], most: int) -> dict[str, Any] | None:
    points = [(e["step"], e[column.key]) for e in entries if _number(e.get(column.key))]
    if not points:
        return None
    steps, values = [p[0] for p in points], [float(p[1]) for p in points]
    x, y = thinned(steps, values, most)
    found = {"key": column.key, "title": column.title, "unit": column.unit}
    found |= {"x": x, "y": [_short(v) for v in y]}
    if column in (columns.LOSS, columns.GRADIENT, columns.SECONDS) and len(points) > 8:
        found["smooth"] = [_short(v) for v in thinned(steps, smoothed(values), most)[1]]
    return found


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _short(value: float) -> float:
    return float(f"{value:.5g}")
