"""From the tensors of a file to the tensor that is placed: expanded, joined, transformed, cast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from musubi.errors import CheckpointError
from musubi.spec.keys import Source
from musubi.weights.contents import Inspection
from musubi.weights.dtypes import FP8, dtype_name
from musubi.weights.files import Weights
from musubi.weights.finite import Truths, finite
from musubi.weights.placing import Placing
from musubi.weights.scaled import expand, joinable, scale_rows
from musubi.weights.slots import Slots

Transform = Callable[[str, torch.Tensor], torch.Tensor]
"""(our name, the tensor on its device) → the tensor to use; float32 when it was stored in 8 bits."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One of our tensors.

    Args:
        ours: Its name.
        source: Where it comes from.
        scales: For each part, the name of its scale or None.
        dtype: What it is stored in when no policy says otherwise.
        kept: It stays in 8 bits.
        stored: The policy's `store` sees it.
        home: Where its bytes go straight from the file, because nothing is computed with them.
    """

    ours: str
    source: Source
    scales: tuple[str | None, ...]
    dtype: torch.dtype
    kept: bool = False
    stored: bool = False
    home: torch.Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What is read for it, in this order: each part, followed by its scale."""
        pairs = zip(self.source.names, self.scales, strict=True)
        return tuple(name for pair in pairs for name in pair if name is not None)


class Settler:
    """Makes each of our tensors from what the file holds, and places it.

    Args:
        weights: The open file.
        contents: What it holds.
        slots: The module's places.
        dtypes: Our name to what it is stored in.
        device: Where it is computed, and lives unless the policy gives it a home.
        transform: Applied to each parameter before the cast.
        placing: The policy.
    """

    def __init__(
        self,
        weights: Weights,
        contents: Inspection,
        slots: Slots,
        dtypes: Mapping[str, torch.dtype],
        *,
        device: torch.device,
        transform: Transform | None,
        placing: Placing | None,
    ) -> None:
        self._weights = weights
        self._contents = contents
        self._slots = slots
        self._dtypes = dtypes
        self._device = device
        self._transform = transform
        self._placing = placing
        self._truths = Truths()
        self._placed: dict[str, torch.dtype] = {}

    def jobs(self, names: Iterable[str]) -> list[Job]:
        """What is to be done for these of our names."""
        return [self._job(name) for name in names]

    def settle(self, job: Job, arrived: Iterable[torch.Tensor]) -> None:
        """Make one of our tensors and place it.

        Args:
            job: Which one.
            arrived: The tensors of `job.names`, on the device.
        """
        found = dict(zip(job.names, arrived, strict=True))
        made: Mapping[str, torch.Tensor] | None = None
        if job.kept:
            made = self._kept(job, found)
        if made is None:
            tensor = self._expanded(job, found)
            found.clear()
            made = self._stored(job, tensor) if job.stored and not job.kept else None
            if made is None:
                made = {job.ours: tensor.to(job.dtype)}
            del tensor
        for name, tensor in made.items():
            if tensor.is_floating_point():
                self._truths.add(job.ours, finite(tensor))
                self._placed.setdefault(job.ours, tensor.dtype)
            self._slots.place(name, self._at_home(name, tensor))

    def settle_at_home(self, job: Job, home: torch.Tensor, truth: bool) -> None:
        """Place a tensor that was read straight into its home; `truth`: its numbers are finite."""
        self._truths.add(job.ours, truth)
        self._placed[job.ours] = home.dtype
        self._slots.place(job.ours, home)

    def check(self, jobs: Iterable[Job], path: Path) -> None:
        """Look whether all that was placed is finite; waits for the device.

        Raises:
            CheckpointError: Some of it is not; it says what and why.
        """
        bad = set(self._truths.false())
        for job in jobs:
            if job.ours in bad:
                found = {name: self._weights.read(name).to(self._device) for name in job.names}
                raise _not_finite(
                    job.ours, self._expanded(job, found), self._placed[job.ours], path
                )

    def _job(self, ours: str) -> Job:
        source = self._contents.sources[ours]
        scales = tuple(self._contents.scales.get(name) for name in source.names)
        dtype = self._dtypes[ours]
        placing = self._placing
        if placing is None:
            return Job(ours=ours, source=source, scales=scales, dtype=dtype)
        weights = self._weights
        kept = (
            self._transform is None
            and source.operation in ("copy", "concat")
            and joinable(source.names, weights.shapes, weights.dtypes, self._contents.scales)
            and placing.keeps(ours)
        )
        stored = kept or (dtype.is_floating_point and placing.stores(ours))
        home = None
        if (
            not stored
            and not (self._transform is not None and dtype.is_floating_point)
            and source.operation == "copy"
            and scales == (None,)
            and weights.dtypes[source.names[0]] is dtype
        ):
            home = self._home(ours)
            if home is not None and (home.dtype is not dtype or not home.is_contiguous()):
                home = None
        return Job(
            ours=ours,
            source=source,
            scales=scales,
            dtype=dtype,
            kept=kept,
            stored=stored,
            home=home,
        )

    def _kept(self, job: Job, found: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor] | None:
        assert self._placing is not None
        parts = [found[name] for name in job.source.names]
        weight = parts[0] if len(parts) == 1 else _joined(parts)
        scale = None
        if any(job.scales):
            rows = [
                scale_rows(part, found[s] if s is not None else None)
                for part, s in zip(parts, job.scales, strict=True)
            ]
            scale = torch.cat(rows)
        return self._placing.store(job.ours, weight, scale)

    def _stored(self, job: Job, tensor: torch.Tensor) -> Mapping[str, torch.Tensor] | None:
        assert self._placing is not None
        return self._placing.store(job.ours, tensor, None)

    def _expanded(self, job: Job, found: dict[str, torch.Tensor]) -> torch.Tensor:
        parts = []
        for name, scale in zip(job.source.names, job.scales, strict=True):
            weight = found.pop(name)
            parts.append(expand(name, weight, found.pop(scale) if scale is not None else None))
            del weight
        if job.source.operation == "swap":
            tensor = torch.cat(parts[0].chunk(2)[::-1])
        elif job.source.operation == "concat":
            tensor = torch.cat(parts)
        else:
            tensor = parts[0].contiguous()
        parts.clear()
        if self._transform is not None and tensor.is_floating_point():
            tensor = self._transform(job.ours, tensor)
        return tensor

    def _at_home(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        home = self._home(name)
        if home is None:
            return tensor
        # Not waited for: the device does one thing after the other, and is waited for at the end.
        return home.copy_(tensor, non_blocking=home.is_pinned())

    def _home(self, name: str) -> torch.Tensor | None:
        if self._placing is None:
            return None
        homes = (self._placing.home(alias) for alias in [name, *self._slots.tied(name)])
        return next((home for home in homes if home is not None), None)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """8-bit parts as one; as bytes, because not every torch joins 8-bit floats."""
    return torch.cat([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)


def _not_finite(
    ours: str, tensor: torch.Tensor, placed: torch.dtype, path: Path
) -> CheckpointError:
    if finite(tensor):
        return CheckpointError(
            f"{path}: {ours!r} does not fit {dtype_name(placed)}: its largest number is "
            f"{float(tensor.abs().max()):.4g}.",
            fix="Load it in bfloat16 or float32.",
        )
    if tensor.dtype in FP8:
        tensor = tensor.float()
    kind = "NaN" if bool(torch.isnan(tensor).any()) else "an infinity"
    return CheckpointError(
        f"{path}: {ours!r} holds {kind}.", fix="The file is damaged; download or train it again."
    )
