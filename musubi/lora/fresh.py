"""Adapters before their first step: sizes and first numbers of each kind, which change nothing yet."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from musubi.lora.delta import Delta, Difference, Pair
from musubi.lora.forward import norms_of
from musubi.lora.kinds import Decomposed, Hada, Kron, Rotation

INNER = ("lora", "loha", "lokr")
"""The kinds that can be the direction of a DoRA."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The kind of a new adapter, and its settings.

    Args:
        name: "lora", "loha", "lokr", "dora", "oft" or "full".
        direction: For "dora": the kind that changes the direction.
        rank_stabilized: Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv:2312.03732).
        factor: For "lokr": the most rows and columns of the small matrix; -1: about the square
            root.
        decompose_both: For "lokr": the small matrix is a product of two matrices too.
        full_matrix: For "lokr": the large matrix is stored whole, not as a product.
        unbalanced: For "lokr": the small matrix has many rows.
        tucker: Convolutions get a core.
        by_column: For "dora": magnitudes of columns, as in older files, instead of rows.
        constraint: For "oft": limit of the generator's norm, times the number of outputs.
        rescaled: For "oft": also a factor for each row.
        init: For "lora": "default"; or "pissa", the largest singular vectors (arXiv:2404.02948).
    """

    name: str = "lora"
    direction: str = "lora"
    rank_stabilized: bool = False
    factor: int = -1
    decompose_both: bool = False
    full_matrix: bool = False
    unbalanced: bool = False
    tucker: bool = False
    by_column: bool = False
    constraint: float = 0.0
    rescaled: bool = False
    init: str = "default"

    def alpha(self, alpha: float | None, rank: int) -> float:
        """Alpha as files have it, so that alpha / rank is the scale; None or 0 means the rank."""
        alpha = float(alpha or rank)
        return alpha * math.sqrt(rank) if self.rank_stabilized else alpha


def fresh(
    kind: Kind, layer: nn.Module, weight: torch.Tensor, *, rank: int, alpha: float | None
) -> Delta:
    """An adapter of a layer that changes nothing until it is trained.

    Args:
        kind: What it is.
        layer: Linear or a convolution; its device is the adapter's.
        weight: Its weight as it multiplies; only DoRA looks at the numbers.
        rank: Rank of the matrices; for OFT, the size of a block.
        alpha: The scale is alpha / rank; None or 0 means alpha = rank.
    """
    if kind.name == "dora":
        inner = fresh(replace(kind, name=kind.direction), layer, weight, rank=rank, alpha=alpha)
        return Decomposed(inner, norms_of(weight, by_column=kind.by_column))
    outputs, inputs = int(weight.shape[0]), int(weight.shape[1])
    kernel = tuple(weight.shape[2:])
    device = weight.device
    scaled = kind.alpha(alpha, rank)
    core = kind.tucker and any(n != 1 for n in kernel)
    if kind.name == "lora":
        return _pair(outputs, inputs, kernel, rank, scaled, core, device)
    if kind.name == "loha":
        return _hada(outputs, inputs, kernel, rank, scaled, core, device)
    if kind.name == "lokr":
        return _kron(kind, outputs, inputs, kernel, rank, scaled, core, device)
    if kind.name == "oft":
        size, count = factors(outputs, rank)
        rescale = torch.ones(outputs, *(1,) * (weight.ndim - 1), device=device)
        return Rotation(
            torch.zeros(count, size, size, device=device),
            rescale if kind.rescaled else None,
            kind.constraint,
        )
    return Difference(torch.zeros(weight.shape, device=device))


def factors(number: int, most: int = -1) -> tuple[int, int]:
    """Two factors of a number, the smaller first: it is `most`, or below it, or near the root for -1.

    >>> factors(360, 16), factors(512), factors(250, 4)
    ((15, 24), (16, 32), (2, 125))
    """
    if most > 0 and number % most == 0:
        return min(most, number // most), max(most, number // most)
    limit = number if most < 0 else most
    best = 1
    for small in range(2, math.isqrt(number) + 1):
        if number % small == 0 and small <= limit:
            best = small
    return best, number // best


def principal(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) whose product, scaled, is the weight's largest singular part, shared evenly.

    Args:
        weight: (outputs, inputs).
        rank: Of the part.
        scale: What the product will be multiplied by.
    """
    u, s, v = torch.linalg.svd(weight.float().flatten(1), full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def _pair(
    outputs: int,
    inputs: int,
    kernel: tuple[int, ...],
    rank: int,
    alpha: float,
    core: bool,
    device: torch.device,
) -> Pair:
    ones = (1,) * len(kernel)
    if core:
        down = torch.empty(rank, inputs, *ones, device=device)
        mid = torch.empty(rank, rank, *kernel, device=device)
    else:
        down, mid = torch.empty(rank, inputs, *kernel, device=device), None
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    if mid is not None:
        nn.init.kaiming_uniform_(mid, a=math.sqrt(5))
    return Pair(down, torch.zeros(outputs, rank, *ones, device=device), alpha, mid)


def _hada(
    outputs: int,
    inputs: int,
    kernel: tuple[int, ...],
    rank: int,
    alpha: float,
    core: bool,
    device: torch.device,
) -> Hada:
    def normal(*shape: int, std: float) -> torch.Tensor:
        return torch.randn(*shape, device=device) * std

    flat = inputs if core else inputs * math.prod(kernel)
    rows = (rank, outputs) if core else (outputs, rank)
    cores = [normal(rank, rank, *kernel, std=0.1) if core else None for _ in range(2)]
    return Hada(
        normal(*rows, std=0.1),
        normal(rank, flat, std=1.0),
        torch.zeros(*rows, device=device),
        normal(rank, flat, std=1.0),
        alpha,
        *cores,
    )


def _kron(
    kind: Kind,
    outputs: int,
    inputs: int,
    kernel: tuple[int, ...],
    rank: int,
    alpha: float,
    core: bool,
    device: torch.device,
) -> Kron:
    def kaiming(*shape: int) -> torch.Tensor:
        made = torch.empty(*shape, device=device)
        nn.init.kaiming_uniform_(made, a=math.sqrt(5))
        return made

    columns1, columns2 = factors(inputs, kind.factor)
    rows1, rows2 = factors(outputs, kind.factor)
    if kind.unbalanced:
        rows1, rows2 = rows2, rows1
    kron = Kron(alpha=alpha)
    if kind.full_matrix or 2 * rank >= max(rows2, columns2):
        kron.w2 = torch.zeros(rows2, columns2, *kernel, device=device)
    elif core:
        kron.t2 = kaiming(rank, rank, *kernel)
        kron.w2_a = kaiming(rank, rows2)
        kron.w2_b = torch.zeros(rank, columns2, device=device)
    else:
        kron.w2_a = kaiming(rows2, rank)
        kron.w2_b = torch.zeros(rank, columns2 * math.prod(kernel), device=device)
    if kind.decompose_both and not kind.full_matrix and 2 * rank < max(rows1, columns1):
        kron.w1_a, kron.w1_b = kaiming(rows1, rank), kaiming(rank, columns1)
    else:
        kron.w1 = kaiming(rows1, columns1)
    return kron
