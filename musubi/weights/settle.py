"""From the tensors of a file to the tensor that is placed: expanded, joined, transformed, cast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from musubi.errors import CheckpointError
from musubi.weights.contents import Inspection
from musubi.weights.dtypes import FP8, dtype_name
from musubi.weights.files import Weights
from musubi.weights.finite import Truths, finite
from musubi.weights.jobs import Job, Whole, plan_job
from musubi.weights.placing import Placing
from musubi.weights.reading import Order, Reading
from musubi.weights.scaled import expand, scale_rows
from musubi.weights.slots import Slots

Transform = Callable[[str, torch.Tensor], torch.Tensor]
"""(our name, the tensor on its device) → the tensor to use; float32 when it was stored in 8 bits."""


class Settler:
    """Makes each of our tensors from what the file holds, and places it.

    Args:
        weights: The open file.
        contents: What it holds.
        slots: The module's places.
        device: Where tensors are computed, and live unless the policy gives them a home.
        transform: Applied to each parameter before the cast.
        placing: The policy.
    """

    def __init__(
        self,
        weights: Weights,
        contents: Inspection,
        slots: Slots,
        *,
        device: torch.device,
        transform: Transform | None,
        placing: Placing | None,
    ) -> None:
        self._weights = weights
        self._contents = contents
        self._slots = slots
        self._device = device
        self._transform = transform
        self._placing = placing
        self._wholes: dict[str, Whole] = {}
        self._truths = Truths()
        self._placed: dict[str, torch.dtype] = {}

    def job(self, ours: str, dtype: torch.dtype) -> Job:
        """What is to be done for one tensor that is stored in `dtype` if no policy objects."""
        return plan_job(
            ours,
            dtype,
            self._weights,
            self._contents,
            self._placing,
            transformed=self._transform is not None,
            home=self._home(ours),
        )

    def orders(self, job: Job) -> Iterator[Order]:
        """How to read what `job.names` names."""
        whole = Whole(job, self._weights, self._contents.shapes[job.ours], self._device)
        if job.whole:
            self._wholes[job.ours] = whole
        host = job.home is not None or self._device.type == "cpu"
        for name in job.names:
            in_whole = job.whole and name in job.source.names
            yield Order(
                name,
                partial(whole.part if in_whole else self._room, name),
                host=host,
                checked=host and job.straight and job.dtype.is_floating_point,
            )

    def settle(self, job: Job, reading: Reading) -> None:
        """Make one of our tensors from what comes next, and place it."""
        arrived = reading.take(len(job.names))
        known_finite = [one.finite for one in arrived if one.finite is not None]
        found = {name: one.tensor for name, one in zip(job.names, arrived, strict=True)}
        del arrived
        whole = self._wholes.pop(job.ours).tensor if job.whole else None
        if job.straight and known_finite:
            assert whole is not None
            self._truths.add(job.ours, all(known_finite))
            self._put(job, {job.ours: whole}, check=False)
            return
        made: Mapping[str, torch.Tensor] | None = None
        if job.kept:
            assert whole is not None
            made = self._kept(job, whole, found)
        if made is None:
            tensor = self._expanded(job, whole, found, None if job.stored else job.dtype)
            whole = None
            if job.stored and not job.kept:
                assert self._placing is not None
                made = self._placing.store(job.ours, tensor, None)
            if made is None:
                made = {job.ours: tensor.to(job.dtype)}
            del tensor
        self._put(job, made, check=True)

    def check(self, jobs: Iterable[Job], path: Path) -> None:
        """Look whether all that was placed is finite; waits for the device.

        Raises:
            CheckpointError: Some of it is not; it says what and why.
        """
        bad = set(self._truths.false())
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        for job in jobs:
            if job.ours in bad:
                found = {name: self._weights.read(name).to(self._device) for name in job.names}
                tensor = self._expanded(job, None, found)
                raise _not_finite(job.ours, tensor, self._placed[job.ours], path)

    def _room(self, name: str) -> torch.Tensor:
        weights = self._weights
        return torch.empty(weights.shapes[name], dtype=weights.dtypes[name], device=self._device)

    def _kept(
        self, job: Job, whole: torch.Tensor, found: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor] | None:
        assert self._placing is not None
        pairs = zip(job.source.names, job.scales, strict=True)
        rows = [scale_rows(found[name], found[scale] if scale else None) for name, scale in pairs]
        return self._placing.store(job.ours, whole, torch.cat(rows))

    def _expanded(
        self,
        job: Job,
        whole: torch.Tensor | None,
        found: dict[str, torch.Tensor],
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """The tensor in numbers that can be computed with; takes what it uses out of `found`.

        With a dtype, 8-bit weights become that at once where nothing is computed with them.
        """
        kinds = {self._weights.dtypes[name] for name in job.source.names}
        if dtype is None or job.transformed or not kinds <= FP8:
            dtype = torch.float32
        if whole is not None and not job.kept:
            found.clear()
            tensor = whole
        else:
            parts = [
                expand(name, found.pop(name), found.pop(scale) if scale else None, dtype)
                for name, scale in zip(job.source.names, job.scales, strict=True)
            ]
            if job.source.operation == "swap":
                tensor = torch.cat(parts[0].chunk(2)[::-1])
            elif job.source.operation == "concat":
                tensor = torch.cat(parts)
            elif job.source.operation == "squeeze":
                n = job.source.ones
                shape = parts[0].shape[n:] if job.source.leading else parts[0].shape[:-n]
                tensor = parts[0].reshape(shape).contiguous()
            else:
                tensor = parts[0].contiguous()
        if job.transformed:
            assert self._transform is not None
            tensor = self._transform(job.ours, tensor)
        return tensor

    def _put(self, job: Job, made: Mapping[str, torch.Tensor], *, check: bool) -> None:
        for name, tensor in made.items():
            if tensor.is_floating_point():
                self._placed.setdefault(job.ours, tensor.dtype)
                if check:
                    self._truths.add(job.ours, finite(tensor))
            home = self._home(name)
            if home is not None and home is not tensor:
                # Not waited for: the device does one thing after the other, and `check` waits.
                tensor = home.copy_(tensor, non_blocking=home.is_pinned())
            self._slots.place(name, tensor)

    def _home(self, name: str) -> torch.Tensor | None:
        if self._placing is None:
            return None
        names = dict.fromkeys([name, *self._slots.tied(name)])
        homes = (self._placing.home(alias) for alias in names)
        return next((home for home in homes if home is not None), None)


def _not_finite(
    ours: str, tensor: torch.Tensor, placed: torch.dtype, path: Path
) -> CheckpointError:
    if finite(tensor):
        return CheckpointError(
            f"{path}: {ours!r} does not fit {dtype_name(placed)}: its largest number is "
            f"{float(tensor.abs().max()):.4g}.",
            fix="Load it in bfloat16 or float32.",
        )
    kind = "NaN" if bool(torch.isnan(tensor).any()) else "an infinity"
    return CheckpointError(
        f"{path}: {ours!r} holds {kind}.", fix="The file is damaged; download or train it again."
    )
