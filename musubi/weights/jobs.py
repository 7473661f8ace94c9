"""What is to be done for each of a network's tensors, decided before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from musubi.plugin.keys import Source
from musubi.weights.contents import Inspection
from musubi.weights.dtypes import FP8
from musubi.weights.files import Weights
from musubi.weights.placing import Placing
from musubi.weights.scaled import joinable


@dataclass(frozen=True, kw_only=True)
class Job:
    """One of our tensors.

    Args:
        ours: Its name.
        source: Where it comes from.
        scales: For each part, the name of its scale or None.
        dtype: What it is stored in when no policy says otherwise.
        transformed: It goes through the transform.
        kept: It stays in 8 bits.
        stored: The policy's `store` sees it.
        whole: Its parts are read into one tensor, each at its place.
        straight: And that tensor is placed as it is.
        home: A tensor of the policy's into which they go straight from the file.
    """

    ours: str
    source: Source
    scales: tuple[str | None, ...]
    dtype: torch.dtype
    transformed: bool = False
    kept: bool = False
    stored: bool = False
    whole: bool = False
    straight: bool = False
    home: torch.Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What is read for it, in this order: each part, followed by its scale."""
        pairs = zip(self.source.names, self.scales, strict=True)
        return tuple(name for pair in pairs for name in pair if name is not None)


class Whole:
    """The memory of one of our tensors, taken when its first part is about to come.

    Args:
        job: Whose tensor.
        weights: The open file.
        shape: Its shape.
        device: Where it lives, if the job has no home for it.
    """

    def __init__(
        self, job: Job, weights: Weights, shape: tuple[int, ...], device: torch.device
    ) -> None:
        self._job = job
        self._shape = shape
        self._dtype = weights.dtypes[job.source.names[0]]
        self._device = device
        self._starts: dict[str, tuple[int, int]] = {}
        start = 0
        for name in job.source.names:
            rows = weights.shapes[name][0] if weights.shapes[name] else 1
            self._starts[name] = start, rows
            start += rows

    @cached_property
    def tensor(self) -> torch.Tensor:
        """All of it."""
        if self._job.home is not None:
            return self._job.home
        return torch.empty(self._shape, dtype=self._dtype, device=self._device)

    def part(self, name: str) -> torch.Tensor:
        """The rows of one part of the source."""
        return self.tensor.narrow(0, *self._starts[name]) if len(self._starts) > 1 else self.tensor


def plan_job(
    ours: str,
    dtype: torch.dtype,
    weights: Weights,
    contents: Inspection,
    placing: Placing | None,
    *,
    transformed: bool,
    home: torch.Tensor | None,
) -> Job:
    """Decide for one tensor.

    Args:
        ours: Our name.
        dtype: What it is stored in when `placing` does not say otherwise.
        weights: The open file.
        contents: What it holds.
        placing: The policy.
        transformed: Whether there is a transform.
        home: The policy's home for it.
    """
    source = contents.sources[ours]
    scales = tuple(contents.scales.get(name) for name in source.names)
    kinds = {weights.dtypes[name] for name in source.names}
    in_order = source.operation in ("copy", "concat") and len(kinds) == 1
    transformed = transformed and dtype.is_floating_point
    kept = (
        placing is not None
        and not transformed
        and in_order
        and joinable(source.names, weights.shapes, weights.dtypes, contents.scales)
        and placing.keeps(ours)
    )
    stored = kept or (placing is not None and dtype.is_floating_point and placing.stores(ours))
    bare = in_order and not any(scales)
    straight = bare and kinds == {dtype} and not transformed and not stored
    if home is not None:
        fits = home.is_cpu and home.dtype is dtype and home.is_contiguous()
        home = home if straight and fits else None
    return Job(
        ours=ours,
        source=source,
        scales=scales,
        dtype=dtype,
        transformed=transformed,
        kept=kept,
        stored=stored,
        whole=kept or straight or (bare and not kinds & FP8),
        straight=straight,
        home=home,
    )
