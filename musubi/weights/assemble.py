"""From the tensors of a file to the tensor that is placed: expanded, joined, transformed, cast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from musubi.errors import CheckpointError
from musubi.plugin.keys import TensorSource
from musubi.weights.contents import Inspection
from musubi.weights.dtypes import FP8, dtype_name
from musubi.weights.files import Weights
from musubi.weights.finite import Truths, finite
from musubi.weights.meta import ModuleMap
from musubi.weights.placement import Placement
from musubi.weights.scaled import expand, joinable, scale_rows
from musubi.weights.stream_in import Order, TensorStream

Transform = Callable[[str, torch.Tensor], torch.Tensor]
"""(our name, the tensor on its device) → the tensor to use; float32 when it was stored in 8 bits."""


class Assembler:
    """Makes each of our tensors from what the file holds, and places it.

    Args:
        weights: The open file.
        contents: What it holds.
        module_map: The module's places.
        device: Where tensors are computed, and live unless the policy gives them a home.
        transform: Applied to each parameter before the cast.
        placement: The policy.
    """

    def __init__(
        self,
        weights: Weights,
        contents: Inspection,
        module_map: ModuleMap,
        *,
        device: torch.device,
        transform: Transform | None,
        placement: Placement | None,
    ) -> None:
        self._weights = weights
        self._contents = contents
        self._module_map = module_map
        self._device = device
        self._transform = transform
        self._placement = placement
        self._wholes: dict[str, TensorMemory] = {}
        self._truths = Truths()
        self._placed: dict[str, torch.dtype] = {}

    def plan(self, ours: str, dtype: torch.dtype) -> TensorPlan:
        """How to make one tensor, which is stored in `dtype` unless a policy changes that."""
        return plan_tensor(
            ours,
            dtype,
            self._weights,
            self._contents,
            self._placement,
            transformed=self._transform is not None,
            home=self._home(ours),
        )

    def orders(self, plan: TensorPlan) -> Iterator[Order]:
        """How to read what `plan.names` names."""
        whole = TensorMemory(plan, self._weights, self._contents.shapes[plan.ours], self._device)
        if plan.whole:
            self._wholes[plan.ours] = whole
        host = plan.home is not None or self._device.type == "cpu"
        for name in plan.names:
            in_whole = plan.whole and name in plan.source.names
            yield Order(
                name,
                partial(whole.part if in_whole else self._room, name),
                host=host,
                checked=host and plan.straight and plan.dtype.is_floating_point,
            )

    def assemble(self, plan: TensorPlan, reading: TensorStream) -> None:
        """Make one of our tensors from what comes next, and place it."""
        arrived = reading.take(len(plan.names))
        known_finite = [one.finite for one in arrived if one.finite is not None]
        found = {name: one.tensor for name, one in zip(plan.names, arrived, strict=True)}
        del arrived
        whole = self._wholes.pop(plan.ours).tensor if plan.whole else None
        if plan.straight and known_finite:
            assert whole is not None
            self._truths.add(plan.ours, all(known_finite))
            self._put(plan, {plan.ours: whole}, check=False)
            return
        made: Mapping[str, torch.Tensor] | None = None
        if plan.kept:
            assert whole is not None
            made = self._kept(plan, whole, found)
        if made is None:
            tensor = self._expanded(plan, whole, found, None if plan.stored else plan.dtype)
            whole = None
            if plan.stored and not plan.kept:
                assert self._placement is not None
                made = self._placement.store(plan.ours, tensor, None)
            if made is None:
                made = {plan.ours: tensor.to(plan.dtype)}
            del tensor
        self._put(plan, made, check=True)

    def check(self, plans: Iterable[TensorPlan], path: Path) -> None:
        """Look whether all that was placed is finite; waits for the device.

        Raises:
            CheckpointError: Some of it is not; it says what and why.
        """
        bad = set(self._truths.false())
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        for plan in plans:
            if plan.ours in bad:
                found = {name: self._weights.read(name).to(self._device) for name in plan.names}
                tensor = self._expanded(plan, None, found)
                raise _not_finite(plan.ours, tensor, self._placed[plan.ours], path)

    def _room(self, name: str) -> torch.Tensor:
        weights = self._weights
        return torch.empty(weights.shapes[name], dtype=weights.dtypes[name], device=self._device)

    def _kept(
        self, plan: TensorPlan, whole: torch.Tensor, found: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor] | None:
        assert self._placement is not None
        pairs = zip(plan.source.names, plan.scales, strict=True)
        rows = [scale_rows(found[name], found[scale] if scale else None) for name, scale in pairs]
        return self._placement.store(plan.ours, whole, torch.cat(rows))

    def _expanded(
        self,
        plan: TensorPlan,
        whole: torch.Tensor | None,
        found: dict[str, torch.Tensor],
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """The tensor in numbers that can be computed with; takes what it uses out of `found`.

        With a dtype, 8-bit weights become that at once where nothing is computed with them.
        """
        kinds = {self._weights.dtypes[name] for name in plan.source.names}
        if dtype is None or plan.transformed or not kinds <= FP8:
            dtype = torch.float32
        if whole is not None and not plan.kept:
            found.clear()
            tensor = whole
        else:
            parts = [
                expand(name, found.pop(name), found.pop(scale) if scale else None, dtype)
                for name, scale in zip(plan.source.names, plan.scales, strict=True)
            ]
            if plan.source.operation == "swap":
                tensor = torch.cat(parts[0].chunk(2)[::-1])
            elif plan.source.operation == "concat":
                tensor = torch.cat(parts)
            elif plan.source.operation == "squeeze":
                n = plan.source.ones
                shape = parts[0].shape[n:] if plan.source.leading else parts[0].shape[:-n]
                tensor = parts[0].reshape(shape).contiguous()
            else:
                tensor = parts[0].contiguous()
        if plan.transformed:
            assert self._transform is not None
            tensor = self._transform(plan.ours, tensor)
        return tensor

    def _put(self, plan: TensorPlan, made: Mapping[str, torch.Tensor], *, check: bool) -> None:
        for name, tensor in made.items():
            if tensor.is_floating_point():
                self._placed.setdefault(plan.ours, tensor.dtype)
                if check:
                    self._truths.add(plan.ours, finite(tensor))
            home = self._home(name)
            if home is not None and home is not tensor:
                # Not waited for: the device does one thing after the other, and `check` waits.
                tensor = home.copy_(tensor, non_blocking=home.is_pinned())
            self._module_map.place(name, tensor)

    def _home(self, name: str) -> torch.Tensor | None:
        if self._placement is None:
            return None
        names = dict.fromkeys([name, *self._module_map.tied(name)])
        homes = (self._placement.home(alias) for alias in names)
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


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """One of our tensors.

    Args:
        ours: Its name.
        source: Where it comes from.
        scales: For each part, the name of its scale or None.
        dtype: What it is stored in when no policy says otherwise.
        transformed: Whether the transform is applied to the tensor.
        kept: Whether the tensor stays in 8 bits.
        stored: The policy's `store` sees it.
        whole: Its parts are read into one tensor, each at its place.
        straight: And that tensor is placed as it is.
        home: A tensor of the policy's into which they go straight from the file.
    """

    ours: str
    source: TensorSource
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
        """The tensors to read, in this order: each part, followed by its scale."""
        pairs = zip(self.source.names, self.scales, strict=True)
        return tuple(name for pair in pairs for name in pair if name is not None)


class TensorMemory:
    """The memory of one of our tensors, taken when its first part is about to come.

    Args:
        plan: Whose tensor.
        weights: The open file.
        shape: Its shape.
        device: Where it lives, if the plan has no home for it.
    """

    def __init__(
        self, plan: TensorPlan, weights: Weights, shape: tuple[int, ...], device: torch.device
    ) -> None:
        self._plan = plan
        self._shape = shape
        self._dtype = weights.dtypes[plan.source.names[0]]
        self._device = device
        self._starts: dict[str, tuple[int, int]] = {}
        start = 0
        for name in plan.source.names:
            rows = weights.shapes[name][0] if weights.shapes[name] else 1
            self._starts[name] = start, rows
            start += rows

    @cached_property
    def tensor(self) -> torch.Tensor:
        """All of it."""
        if self._plan.home is not None:
            return self._plan.home
        return torch.empty(self._shape, dtype=self._dtype, device=self._device)

    def part(self, name: str) -> torch.Tensor:
        """The rows of one part of the source."""
        return self.tensor.narrow(0, *self._starts[name]) if len(self._starts) > 1 else self.tensor


def plan_tensor(
    ours: str,
    dtype: torch.dtype,
    weights: Weights,
    contents: Inspection,
    placement: Placement | None,
    *,
    transformed: bool,
    home: torch.Tensor | None,
) -> TensorPlan:
    """Decide for one tensor.

    Args:
        ours: Our name.
        dtype: What it is stored in when `placement` does not say otherwise.
        weights: The open file.
        contents: What it holds.
        placement: The policy.
        transformed: Whether there is a transform.
        home: The policy's home for it.
    """
    source = contents.sources[ours]
    scales = tuple(contents.scales.get(name) for name in source.names)
    kinds = {weights.dtypes[name] for name in source.names}
    in_order = source.operation in ("copy", "concat") and len(kinds) == 1
    transformed = transformed and dtype.is_floating_point
    kept = (
        placement is not None
        and not transformed
        and in_order
        and joinable(source.names, weights.shapes, weights.dtypes, contents.scales)
        and placement.keeps(ours, weights.dtypes[source.names[0]])
    )
    stored = kept or (placement is not None and dtype.is_floating_point and placement.stores(ours))
    bare = in_order and not any(scales)
    straight = bare and kinds == {dtype} and not transformed and not stored
    if home is not None:
        fits = home.is_cpu and home.dtype is dtype and home.is_contiguous()
        home = home if straight and fits else None
    return TensorPlan(
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
