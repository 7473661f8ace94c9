"""What an adapter does to one tensor of a network: a small number of kinds, each with its maths.

Every kind answers one question: given the weight, what is added to it at full strength? A strength
multiplies that answer, whatever the kind, and several adapters of one weight are each computed from
the weight as it was and then added up. So the order of files does not matter, and a network with
adapters beside its layers gives what one with merged weights gives.

Formats: the `lora_*`, `hada_*`, `lokr_*`, `oft_blocks` and `diff` tensors of LyCORIS and of the kohya
scripts, and those of peft.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from typing_extensions import Self


@dataclass(eq=False)
class Delta(ABC):
    """A change of one tensor; each subclass is a kind.

    Attributes:
        title: What people call the kind.
        linear: Whether the change is the same whatever the weight is.
    """

    title: ClassVar[str] = ""
    linear: ClassVar[bool] = True

    def change(self, weight: torch.Tensor) -> torch.Tensor:
        """The change of the weight at full strength, in float32 and in the weight's shape."""
        return self.matrix().reshape(weight.shape)

    def matrix(self) -> torch.Tensor:
        """The change of a linear kind in float32: (outputs, inputs) or the shape of its kernel."""
        raise TypeError(f"the change of a {self.title} depends on the weight")

    @abstractmethod
    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it can change a tensor of this shape."""

    @abstractmethod
    def size(self) -> str:
        """The shape it needs, for messages."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by field, those of a part within it too."""
        found: dict[str, torch.Tensor] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                found[field.name] = value
            elif isinstance(value, Delta):
                found |= {f"{field.name}.{n}": t for n, t in value.tensors().items()}
        return found

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """A copy in which the function was applied to each tensor."""
        made: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                made[field.name] = function(value)
            elif isinstance(value, Delta):
                made[field.name] = value.mapped(function)
        return dataclasses.replace(self, **made)

    def to(self, device: torch.device | str) -> Self:
        """A copy on a device."""
        return self.mapped(lambda t: t.to(device))

    def norm(self) -> float | None:
        """Frobenius norm of the change; None when it depends on the weight."""
        return float(self.matrix().double().norm()) if self.linear else None

    def rows(self, start: int, stop: int) -> Delta | None:
        """The change of these rows of the weight alone; None if the change cannot be split."""
        return None

    def turned(self) -> Delta | None:
        """The change for a weight whose halves of axis 0 are swapped; None if that is not possible."""
        count = self.outputs
        if count is None:
            return None
        first, second = self.rows(0, count // 2), self.rows(count // 2, count)
        return None if first is None or second is None else stacked([second, first])

    @property
    def outputs(self) -> int | None:
        """Length of axis 0 of the weight, where it is known."""
        return None

    @property
    def rank(self) -> int | None:
        """Of the matrices, where there is one."""
        return None


@dataclass(eq=False)
class Pair(Delta):
    """A low-rank pair: `scale * up @ down`; with `mid`, a Tucker decomposition of a convolution.

    Args:
        down: (rank, inputs), or (rank, inputs, *kernel) for a convolution.
        up: (outputs, rank), or with ones for a kernel behind.
        alpha: The scale is alpha / rank; None: the scale is 1. 0 is no effect.
        mid: (rank, rank, *kernel); `down` is then (rank, inputs).
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None = None
    mid: torch.Tensor | None = None

    title: ClassVar[str] = "LoRA"

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """The factor alpha / rank.

        >>> Pair(torch.zeros(4, 8), torch.zeros(8, 4), 2.0).scale
        0.5
        """
        return scale_of(self.alpha, self.rank)

    @property
    def outputs(self) -> int:
        """Rows of `up`."""
        return int(self.up.shape[0])

    def matrix(self) -> torch.Tensor:
        """The whole change, (outputs, inputs) or (outputs, inputs, *kernel)."""
        up = self.up.float().flatten(1) * self.scale
        down = self.down.float()
        if self.mid is not None:
            return torch.einsum("mn...,im,nj->ij...", self.mid.float(), up, down.flatten(1))
        return (up @ down.flatten(1)).reshape(self.outputs, *down.shape[1:])

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether rows and the rest agree; a kernel may be flat."""
        return bool(shape) and shape[0] == self.outputs and rest(shape) == self._inputs

    def size(self) -> str:
        """Rows x columns."""
        return f"({self.outputs}, {self._inputs})"

    def norm(self) -> float:
        """Frobenius norm of the change, from rank-sized products where there is no `mid`."""
        if self.mid is not None:
            return float(self.matrix().double().norm())
        up, down = self.up.double().flatten(1), self.down.double().flatten(1)
        squared = ((up.T @ up) * (down @ down.T)).sum()
        return float(squared.clamp(min=0).sqrt()) * abs(self.scale)

    def rows(self, start: int, stop: int) -> Pair:
        """Some rows of `up`."""
        return dataclasses.replace(self, up=self.up[start:stop])

    def folded(self) -> Pair:
        """The same change with a scale of 1, in float32."""
        mid = None if self.mid is None else self.mid.float()
        return Pair(self.down.float(), self.up.float() * self.scale, None, mid)

    @property
    def _inputs(self) -> int:
        kernel = 1 if self.mid is None else rest(tuple(self.mid.shape[1:]))
        return rest(tuple(self.down.shape)) * kernel


@dataclass(eq=False)
class Difference(Delta):
    """The change itself, of any tensor: a weight, a bias, a norm, a modulation.

    Args:
        value: In the shape of the tensor.
    """

    value: torch.Tensor

    title: ClassVar[str] = "full difference"

    @property
    def outputs(self) -> int | None:
        """Length of axis 0."""
        return int(self.value.shape[0]) if self.value.ndim else None

    def matrix(self) -> torch.Tensor:
        """The change."""
        return self.value.float()

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it has the shape, leading ones aside."""
        return _bare(tuple(self.value.shape)) == _bare(shape)

    def size(self) -> str:
        """Its shape."""
        return str(tuple(self.value.shape))

    def rows(self, start: int, stop: int) -> Difference:
        """Some rows."""
        return Difference(self.value[start:stop])


class StoredDifference(Difference):
    """A difference that stays in its file until it is used: it may be as large as the network.

    Args:
        read: Gives it.
        shape: Of it.
    """

    def __init__(self, read: Callable[[], torch.Tensor], shape: tuple[int, ...]) -> None:
        self._read, self._shape = read, shape

    @property
    def value(self) -> torch.Tensor:  # type: ignore[override]
        """The tensor, read anew each time."""
        return self._read()

    @property
    def outputs(self) -> int | None:
        """Length of axis 0."""
        return self._shape[0] if self._shape else None

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Difference:  # type: ignore[override]
        """The same in memory, its tensor replaced."""
        return Difference(function(self.value))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it has the shape, leading ones aside."""
        return _bare(self._shape) == _bare(shape)

    def size(self) -> str:
        """Its shape."""
        return str(self._shape)


@dataclass(eq=False)
class Replacement(Delta):
    """A tensor that takes the place of the network's, at full strength.

    Args:
        value: In the shape of the tensor.
    """

    value: torch.Tensor

    title: ClassVar[str] = "replaced tensor"
    linear: ClassVar[bool] = False

    def change(self, weight: torch.Tensor) -> torch.Tensor:
        """What leads from the weight to the value."""
        return self.value.float().reshape(weight.shape) - weight.float()

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it has the shape, leading ones aside."""
        return _bare(tuple(self.value.shape)) == _bare(shape)

    def size(self) -> str:
        """Its shape."""
        return str(tuple(self.value.shape))

    def rows(self, start: int, stop: int) -> Replacement:
        """Some rows."""
        return Replacement(self.value[start:stop])

    @property
    def outputs(self) -> int | None:
        """Length of axis 0."""
        return int(self.value.shape[0]) if self.value.ndim else None


@dataclass(eq=False)
class Stacked(Delta):
    """Changes of consecutive rows of one weight, each of any kind: parts of a fused layer.

    Args:
        parts: (rows, change); None changes nothing.
    """

    parts: tuple[tuple[int, Delta | None], ...]

    title: ClassVar[str] = "parts of a fused layer"

    @property
    def outputs(self) -> int:
        """Rows of the weight."""
        return sum(count for count, _ in self.parts)

    @property
    def rank(self) -> int | None:
        """The largest of the parts."""
        return max((p.rank or 0 for _, p in self.parts if p is not None), default=0) or None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Of all parts, behind their numbers."""
        return {
            f"{i}.{name}": tensor
            for i, (_, part) in enumerate(self.parts)
            if part is not None
            for name, tensor in part.tensors().items()
        }

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Stacked:
        """Each part mapped."""
        return Stacked(tuple((n, None if p is None else p.mapped(function)) for n, p in self.parts))

    def change(self, weight: torch.Tensor) -> torch.Tensor:
        """The changes, one below the other."""
        found = []
        for (_, part), rows in zip(
            self.parts, weight.split([n for n, _ in self.parts]), strict=True
        ):
            found.append(
                torch.zeros(rows.shape, device=weight.device) if part is None else part.change(rows)
            )
        return torch.cat(found)

    def norm(self) -> float | None:
        """Of all parts together; None when one depends on the weight."""
        norms = [p.norm() for _, p in self.parts if p is not None]
        if any(n is None for n in norms):
            return None
        return sum(n * n for n in norms if n is not None) ** 0.5

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether each part fits its rows."""
        return (
            bool(shape)
            and shape[0] == self.outputs
            and all(p is None or p.fits((n, *shape[1:])) for n, p in self.parts)
        )

    def size(self) -> str:
        """Of the parts."""
        return " over ".join(f"{n} rows" if p is None else p.size() for n, p in self.parts)

    def rows(self, start: int, stop: int) -> Delta | None:
        """The part that these rows are, when they are whole parts."""
        found, at = list[tuple[int, Delta | None]](), 0
        for count, part in self.parts:
            low, high = max(start, at), min(stop, at + count)
            if low < high:
                cut = None if part is None else part.rows(low - at, high - at)
                whole = high - low == count
                if cut is None and part is not None and not whole:
                    return None
                found.append((high - low, part if whole else cut))
            at += count
        return found[0][1] if len(found) == 1 else Stacked(tuple(found))


def scale_of(alpha: float | None, rank: int) -> float:
    """The factor alpha / rank; 1 without an alpha. An alpha of 0 is no effect."""
    return 1.0 if alpha is None else alpha / rank


def stacked(parts: list[Delta | None], counts: list[int] | None = None) -> Delta:
    """Changes of consecutive rows as one: a pair when all are pairs of linear layers, else `Stacked`.

    Args:
        parts: From the first rows to the last; None changes nothing.
        counts: The rows of each, where a part does not say.

    Raises:
        ValueError: It is not known how many rows a part is for.
    """
    sizes = [p.outputs if p is not None else None for p in parts]
    sizes = [s if s is not None else (counts or sizes)[i] for i, s in enumerate(sizes)]
    if any(s is None for s in sizes):
        raise ValueError("the rows of a part are not known")
    rows = [int(s or 0) for s in sizes]
    pairs = [p for p in parts if isinstance(p, Pair)]
    if len(pairs) == sum(p is not None for p in parts) and all(_plain(p) for p in pairs):
        return _one_pair(parts, rows)
    if all(isinstance(p, Difference) for p in parts):
        return Difference(torch.cat([p.value for p in parts if isinstance(p, Difference)]))
    return Stacked(tuple(zip(rows, parts, strict=True)))


def _one_pair(parts: list[Delta | None], rows: list[int]) -> Pair:
    """Pairs of consecutive rows as one: ranks side by side, rows in their own places."""
    pairs = [p for p in parts if isinstance(p, Pair)]
    first = pairs[0]
    same = len(pairs) == len(parts) and all(
        p.alpha == first.alpha and torch.equal(p.down, first.down) for p in pairs
    )
    if same:
        return dataclasses.replace(first, up=torch.cat([p.up for p in pairs]))
    rank = sum(p.rank for p in pairs)
    up = torch.zeros(sum(rows), rank, device=first.up.device)
    column, at = 0, 0
    for part, count in zip(parts, rows, strict=True):
        if isinstance(part, Pair):
            up[at : at + count, column : column + part.rank] = part.up.float() * part.scale
            column += part.rank
        at += count
    return Pair(torch.cat([p.down.float() for p in pairs]), up, float(rank))


def _plain(pair: Pair) -> bool:
    return pair.mid is None and pair.up.ndim == 2 and pair.down.ndim == 2


def rest(shape: tuple[int, ...]) -> int:
    """How many numbers each row has."""
    return torch.Size(shape[1:]).numel()


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading ones: a modulation is (1, 6, width) in one file and (6, width) in another."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
