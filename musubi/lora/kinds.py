"""The kinds of adapters beside the low-rank pair: LoHa, LoKr, DoRA and OFT."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from musubi.lora.delta import Delta, rest, scale_of


@dataclass(eq=False)
class Hada(Delta):
    """LoHa: the product, number by number, of two low-rank pairs (FedPara, arXiv:2108.06098).

    Args:
        w1_a: (outputs, rank); with a core (rank, outputs).
        w1_b: (rank, inputs), a kernel flat behind the inputs.
        w2_a: As `w1_a`.
        w2_b: As `w1_b`.
        alpha: As of `Pair`.
        t1: The core (rank, rank, *kernel) of the first, for a convolution.
        t2: The core of the second.
    """

    w1_a: torch.Tensor
    w1_b: torch.Tensor
    w2_a: torch.Tensor
    w2_b: torch.Tensor
    alpha: float | None = None
    t1: torch.Tensor | None = None
    t2: torch.Tensor | None = None

    title: ClassVar[str] = "LoHa"

    @property
    def rank(self) -> int:
        """Of each of the two."""
        return int(self.w1_b.shape[0])

    @property
    def scale(self) -> float:
        """The factor alpha / rank."""
        return scale_of(self.alpha, self.rank)

    @property
    def outputs(self) -> int:
        """Rows of the weight."""
        return int(self.w1_a.shape[0 if self.t1 is None else 1])

    def matrix(self) -> torch.Tensor:
        """The change."""
        first = _product(self.w1_a.float(), self.w1_b.float(), self.t1)
        return first.mul(_product(self.w2_a.float(), self.w2_b.float(), self.t2)).mul(self.scale)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether rows and the rest agree; a kernel may be flat."""
        return bool(shape) and shape[0] == self.outputs and rest(shape) == self._inputs

    def size(self) -> str:
        """Rows x columns."""
        return f"({self.outputs}, {self._inputs})"

    def rows(self, start: int, stop: int) -> Hada:
        """Some rows of both."""
        axis = 0 if self.t1 is None else 1
        cut = [w.narrow(axis, start, stop - start) for w in (self.w1_a, self.w2_a)]
        return dataclasses.replace(self, w1_a=cut[0], w2_a=cut[1])

    @property
    def _inputs(self) -> int:
        kernel = 1 if self.t1 is None else rest(tuple(self.t1.shape[1:]))
        return int(self.w1_b.shape[1]) * kernel


@dataclass(eq=False)
class Kron(Delta):
    """LoKr: the Kronecker product of two matrices, each whole or as a product of two.

    Args:
        w1: (rows 1, columns 1), or None.
        w1_a: (rows 1, rank), when `w1` is None.
        w1_b: (rank, columns 1).
        w2: (rows 2, columns 2, *kernel), or None.
        w2_a: (rows 2, rank), when `w2` is None; with a core (rank, rows 2).
        w2_b: (rank, columns 2), a kernel flat behind.
        t2: The core (rank, rank, *kernel) of the second, for a convolution.
        alpha: As of `Pair`; it means nothing when both are whole.
    """

    w1: torch.Tensor | None = None
    w1_a: torch.Tensor | None = None
    w1_b: torch.Tensor | None = None
    w2: torch.Tensor | None = None
    w2_a: torch.Tensor | None = None
    w2_b: torch.Tensor | None = None
    t2: torch.Tensor | None = None
    alpha: float | None = None

    title: ClassVar[str] = "LoKr"

    @property
    def rank(self) -> int | None:
        """Of the products; None when both are whole."""
        for low in (self.w2_b, self.w1_b):
            if low is not None:
                return int(low.shape[0])
        return None

    @property
    def scale(self) -> float:
        """The factor alpha / rank; 1 when both are whole."""
        return 1.0 if self.rank is None else scale_of(self.alpha, self.rank)

    def first(self) -> torch.Tensor:
        """The small matrix, in float32."""
        if self.w1 is not None:
            return self.w1.float()
        assert self.w1_a is not None and self.w1_b is not None
        return self.w1_a.float() @ self.w1_b.float()

    def second(self) -> torch.Tensor:
        """The large matrix or kernel, in float32."""
        if self.w2 is not None:
            return self.w2.float()
        assert self.w2_a is not None and self.w2_b is not None
        return _product(self.w2_a.float(), self.w2_b.float().flatten(1), self.t2)

    @property
    def outputs(self) -> int:
        """Rows of the weight."""
        return self.sides()[0]

    def matrix(self) -> torch.Tensor:
        """The change, a kernel flat behind the inputs where the second is a product."""
        first, second = self.first() * self.scale, self.second()
        return torch.kron(first.reshape(*first.shape, *(1,) * (second.ndim - 2)), second)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether rows and the rest agree; a kernel may be flat."""
        rows, columns = self.sides()
        return bool(shape) and shape[0] == rows and rest(shape) == columns

    def size(self) -> str:
        """Rows x columns."""
        return str(self.sides())

    def change(self, weight: torch.Tensor) -> torch.Tensor:
        """The change; a flat kernel is unfolded first, for the product runs over inputs alone."""
        second = self.second()
        if weight.ndim > 2 and second.ndim == 2:
            second = second.reshape(second.shape[0], -1, *weight.shape[2:])
        return (
            dataclasses.replace(
                self, w1=self.first() * self.scale, w1_b=None, w2=second, w2_b=None, t2=None
            )
            .matrix()
            .reshape(weight.shape)
        )

    def sides(self) -> tuple[int, int]:
        """Rows of the weight, and numbers in each."""
        rows1 = self.w1 if self.w1 is not None else self.w1_a
        columns1 = self.w1 if self.w1 is not None else self.w1_b
        assert rows1 is not None and columns1 is not None
        if self.w2 is not None:
            rows2, columns2 = int(self.w2.shape[0]), rest(tuple(self.w2.shape))
        else:
            assert self.w2_a is not None and self.w2_b is not None
            rows2 = int(self.w2_a.shape[0 if self.t2 is None else 1])
            kernel = 1 if self.t2 is None else rest(tuple(self.t2.shape[1:]))
            columns2 = rest(tuple(self.w2_b.shape)) * kernel
        return int(rows1.shape[0]) * rows2, int(columns1.shape[1]) * columns2


@dataclass(eq=False)
class Decomposed(Delta):
    """DoRA: direction and magnitude of the weight apart (arXiv:2402.09353).

    The new weight is (W + inner) * magnitude / norm(W + inner), the norm of each row, or of each
    column where the magnitude has one number a column.

    Args:
        inner: The change of the direction.
        magnitude: (outputs, 1, …), or (1, inputs, …), or (outputs).
    """

    inner: Delta
    magnitude: torch.Tensor

    title: ClassVar[str] = "DoRA"
    linear: ClassVar[bool] = False

    @property
    def rank(self) -> int | None:
        """Of what is inside."""
        return self.inner.rank

    @property
    def outputs(self) -> int | None:
        """Of what is inside."""
        return self.inner.outputs

    @property
    def by_column(self) -> bool:
        """Whether the magnitude has one number for each column."""
        return self.magnitude.ndim > 1 and self.magnitude.shape[0] == 1 != self.inner.outputs

    def change(self, weight: torch.Tensor) -> torch.Tensor:
        """What leads from the weight to the new one."""
        old = weight.float()
        new = old + self.inner.change(weight)
        norm = norms(new, by_column=self.by_column)
        return new.mul_(self.magnitude.float().reshape(norm.shape) / norm).sub_(old)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the inside fits, and there is a magnitude for each row or column."""
        wanted = shape[1] if self.by_column and len(shape) > 1 else shape[0] if shape else 0
        return self.inner.fits(shape) and self.magnitude.numel() == wanted

    def size(self) -> str:
        """Of the inside, and the magnitude's shape."""
        return f"{self.inner.size()} with {self.magnitude.numel()} magnitudes"

    def rows(self, start: int, stop: int) -> Decomposed | None:
        """Some rows of both; columns have their norms over all rows."""
        inner = self.inner.rows(start, stop)
        if self.by_column or inner is None:
            return None
        return Decomposed(inner, self.magnitude[start:stop])


@dataclass(eq=False)
class Rotation(Delta):
    """OFT as LyCORIS writes it: each block of rows is turned by an orthogonal matrix (arXiv:2306.07280).

    Args:
        blocks: (blocks, size, size); its skew part is the generator. BOFT: (factors, blocks, size,
            size), which turn butterflies of rows one after the other (arXiv:2311.06243).
        rescale: (outputs, 1, …), a factor for each row, or None.
        constraint: The generator's norm is at most this times the outputs; 0 is no bound.
    """

    blocks: torch.Tensor
    rescale: torch.Tensor | None = None
    constraint: float = 0.0

    title: ClassVar[str] = "OFT"
    linear: ClassVar[bool] = False

    @property
    def rank(self) -> int:
        """The side of a block."""
        return int(self.blocks.shape[-1])

    @property
    def outputs(self) -> int:
        """Rows of the weight."""
        return int(self.blocks.shape[-3] * self.blocks.shape[-1])

    def turns(self) -> torch.Tensor:
        """The orthogonal matrices, shaped like the blocks, in float32 (Cayley)."""
        skew = self.blocks.float() - self.blocks.float().transpose(-1, -2)
        bound = self.constraint * self.outputs
        if bound > 0:
            norm = skew.norm() + 1e-8
            skew = skew * torch.clamp(bound / norm, max=1.0)
        return cayley(skew)

    def moved_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """(…, outputs) → what is added to them when each block is turned.

        The turn less the identity is multiplied, so that half precision rounds a small number.
        """
        turns = self.turns()
        if turns.ndim == 3:
            eye = torch.eye(turns.shape[-1], device=turns.device)
            cut = rows.reshape(*rows.shape[:-1], *turns.shape[:2])
            made = torch.einsum("knm,...kn->...km", (turns - eye).to(rows.dtype), cut)
            made = made.reshape(rows.shape)
        else:
            made = _butterfly(turns.to(rows.dtype), rows) - rows
        if self.rescale is None:
            return made
        factor = self.rescale.float().flatten()
        return made * factor.to(rows.dtype) + rows * (factor - 1).to(rows.dtype)

    def change(self, weight: torch.Tensor) -> torch.Tensor:
        """What leads from the weight to the turned one."""
        old = weight.float()
        return self.moved_rows(old.flatten(1).T).T.reshape(weight.shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the rows agree."""
        return len(shape) > 1 and shape[0] == self.outputs

    def size(self) -> str:
        """Rows x any."""
        return f"({self.outputs}, any)"


@dataclass(eq=False)
class InputRotation(Delta):
    """OFT as peft and OneTrainer write it: blocks of inputs are turned before the layer.

    Args:
        generator: (blocks, size * (size - 1) / 2), the upper triangles of the skew matrices; one
            block alone is used for all.
        block: Size of a block.
        terms: Of the Neumann series that stands for the inverse; 0: the inverse itself.
    """

    generator: torch.Tensor
    block: int
    terms: int = 5
    shared: bool = False

    title: ClassVar[str] = "OFT"
    linear: ClassVar[bool] = False

    @property
    def rank(self) -> int:
        """The side of a block."""
        return self.block

    def turns(self) -> torch.Tensor:
        """(blocks, size, size): x becomes x @ turn."""
        rows, columns = torch.triu_indices(self.block, self.block, 1).unbind()
        skew = torch.zeros(
            self.generator.shape[0], self.block, self.block, device=self.generator.device
        )
        skew[:, rows, columns] = self.generator.float()
        skew = skew - skew.transpose(1, 2)
        if not self.terms:
            return cayley(-skew)
        eye = torch.eye(self.block, device=skew.device)
        total, power = eye.expand_as(skew).clone(), eye.expand_as(skew)
        for number in range(1, self.terms):
            power = power @ skew
            total += power if number == self.terms - 1 and self.terms > 3 else 2 * power
        if self.terms == 3:
            total += power @ skew  # peft adds its last term one power further on
        return total

    def moved_inputs(self, x: torch.Tensor) -> torch.Tensor:
        """(…, inputs) → what is added to them when each block is turned."""
        turns = self.turns()
        turns = (turns - torch.eye(self.block, device=turns.device)).to(x.dtype)
        count = x.shape[-1] // self.block
        cut = x.reshape(*x.shape[:-1], count, self.block)
        return torch.einsum("...kn,knm->...km", cut, turns.expand(count, -1, -1)).reshape(x.shape)

    def change(self, weight: torch.Tensor) -> torch.Tensor:
        """What leads from the weight to the one whose inputs are turned."""
        old = weight.float()
        turns = self.turns()
        count = old.flatten(1).shape[1] // self.block
        cut = old.reshape(old.shape[0], count, self.block)
        made = torch.einsum("okm,knm->okn", cut, turns.expand(count, -1, -1))
        return made.reshape(weight.shape) - old

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the blocks make up the inputs."""
        if len(shape) < 2 or rest(shape) % self.block:
            return False
        return self.shared or rest(shape) == self.block * self.generator.shape[0]

    def size(self) -> str:
        """Any x columns."""
        return f"(any, {self.block * self.generator.shape[0]})"

    def rows(self, start: int, stop: int) -> InputRotation:
        """The same: rows have nothing to do with it."""
        return self


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """(I + Q)(I - Q)^-1 of skew matrices, in float32: orthogonal."""
    eye = torch.eye(skew.shape[-1], device=skew.device)
    return torch.linalg.solve(eye - skew, eye + skew, left=False)


def norms(weight: torch.Tensor, *, by_column: bool = False) -> torch.Tensor:
    """The norm of each row (outputs, 1, …) or of each column (1, inputs, …), never zero."""
    axis = 1 if by_column else 0
    rest = [i for i in range(weight.ndim) if i != axis]
    found = torch.linalg.vector_norm(weight.float(), dim=rest, keepdim=True)
    return found + torch.finfo(torch.float32).eps


def _product(a: torch.Tensor, b: torch.Tensor, core: torch.Tensor | None) -> torch.Tensor:
    """The product a @ b, or around a core: (rank, rows), (rank, columns) and (rank, rank, *kernel)."""
    if core is None:
        return a @ b
    return torch.einsum("ij...,ip,jr->pr...", core.float(), a, b)


def _butterfly(turns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(…, outputs) through each factor of BOFT: rows far apart are gathered, turned, put back."""
    factors, count, size = turns.shape[:3]
    half = size // 2
    for i in range(factors):
        far = 2**i * half
        shape = rows.shape
        # Axes (group, far away, near by) become (group, near by, far away), in pairs of halves.
        cut = rows.reshape(*shape[:-1], -1, 2, far).transpose(-1, -2)
        cut = cut.reshape(*shape[:-1], count, size)
        cut = torch.einsum("kij,...kj->...ki", turns[i], cut)
        rows = cut.reshape(*shape[:-1], -1, far, 2).transpose(-1, -2).reshape(shape)
    return rows
