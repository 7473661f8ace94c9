"""Triton kernels of products in int8: sums are exact in int32, scales are applied once at the end.

Imported only where Triton is installed. Rows M, outputs N, and K, the length that is summed over.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

try:
    from triton.tools import tensor_descriptor  # pyright: ignore[reportMissingImports]

    _describe: Any = tensor_descriptor.TensorDescriptor.from_tensor
except ImportError:  # before Triton 3.4
    _describe = None


@dataclass(frozen=True)
class Tile:
    """How a product is cut: rows, outputs and length of a tile; warps, and stages of its pipeline."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


# Chosen among seven of each kind on one H100, by products of 7800 and 32760 rows with matrices
# of 5120 and 13824: 1280 · 10¹² operations a second by Hopper's own copies, 1090 by plain loads.
_HOPPER = Tile(128, 256, 128, 8, 4)
_OTHERS = Tile(128, 128, 128, 8, 3)
_FEW_ROWS = Tile(64, 128, 128, 4, 3)
_GROUP = 8
_GROUPS = 32  # that one program packs


@triton.jit
def _product(  # noqa: PLR0913 - a kernel takes all it needs
    a,
    w,
    scale_a,
    scale_w,
    bias,
    y,
    M,
    N,
    K,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write y = (a · wᵀ) · scale_a · scale_w + bias; a is (M, K) and w (N, K), both int8 without gaps."""
    number = tl.program_id(0)
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    # Neighbours in time share tiles: GROUP rows of tiles are walked column by column.
    group = number // (GROUP * columns)
    first = group * GROUP
    height = min(rows - first, GROUP)
    at_m = (first + (number % (GROUP * columns)) % height) * BM
    at_n = ((number % (GROUP * columns)) // height) * BN
    m = (at_m + tl.arange(0, BM)).to(tl.int64)
    n = (at_n + tl.arange(0, BN)).to(tl.int64)
    k = tl.arange(0, BK)
    # Rows beyond the end are read from the start again, and not written.
    a_at = a + (m % M)[:, None] * K + k[None, :]
    w_at = w + (n % N)[None, :] * K + k[:, None]
    total = tl.zeros((BM, BN), dtype=tl.int32)
    for start in range(0, K, BK):
        if EVEN:
            left, right = tl.load(a_at), tl.load(w_at)
        else:
            left = tl.load(a_at, mask=k[None, :] < K - start, other=0)
            right = tl.load(w_at, mask=k[:, None] < K - start, other=0)
        total = tl.dot(left, right, total, out_dtype=tl.int32)
        a_at += BK
        w_at += BK
    inside_m, inside_n = m < M, n < N
    of_rows = tl.load(scale_a + m, mask=inside_m, other=0.0)
    of_columns = tl.load(scale_w + n, mask=inside_n, other=0.0)
    result = total.to(tl.float32) * of_rows[:, None] * of_columns[None, :]
    if HAS_BIAS:
        result += tl.load(bias + n, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    place = y + m[:, None] * N + n[None, :]
    tl.store(place, result.to(y.dtype.element_ty), mask=inside_m[:, None] & inside_n[None, :])


@triton.jit
def _product_by_tiles(  # noqa: PLR0913 - a kernel takes all it needs
    a,
    w,
    scale_a,
    scale_w,
    bias,
    y,
    M,
    N,
    K,
    HAS_BIAS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """`_product` where a chip copies whole tiles by itself: `a` and `w` describe theirs."""
    number = tl.program_id(0)
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    group = number // (GROUP * columns)
    first = group * GROUP
    height = min(rows - first, GROUP)
    at_m = (first + (number % (GROUP * columns)) % height) * BM
    at_n = ((number % (GROUP * columns)) // height) * BN
    total = tl.zeros((BM, BN), dtype=tl.int32)
    for start in range(0, K, BK):  # zeros beyond the edges
        left, right = a.load([at_m, start]), w.load([at_n, start])
        total = tl.dot(left, right.T, total, out_dtype=tl.int32)
    m = (at_m + tl.arange(0, BM)).to(tl.int64)
    n = (at_n + tl.arange(0, BN)).to(tl.int64)
    inside_m, inside_n = m < M, n < N
    of_rows = tl.load(scale_a + m, mask=inside_m, other=0.0)
    of_columns = tl.load(scale_w + n, mask=inside_n, other=0.0)
    result = total.to(tl.float32) * of_rows[:, None] * of_columns[None, :]
    if HAS_BIAS:
        result += tl.load(bias + n, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    place = y + m[:, None] * N + n[None, :]
    tl.store(place, result.to(y.dtype.element_ty), mask=inside_m[:, None] & inside_n[None, :])


@triton.jit
def _quantize(x, factor, q, scale, K, HAS_FACTOR: tl.constexpr, BK: tl.constexpr):
    """One row (K): times `factor` (K), then q = round(row / scale), scale = largest / 127."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BK)
    inside = k < K
    values = tl.load(x + row * K + k, mask=inside, other=0.0).to(tl.float32)
    if HAS_FACTOR:
        values *= tl.load(factor + k, mask=inside, other=0.0)
    largest = tl.maximum(tl.max(tl.abs(values), 0), 1e-12 * 127)
    by = largest / 127
    # To the nearest, ties to even: this number has no bits for fractions.
    near = (values * (127 / largest) + 12582912.0) - 12582912.0
    tl.store(q + row * K + k, near.to(tl.int8), mask=inside)
    tl.store(scale + row, by)


@triton.jit
def _turn(w, t, N, K, BN: tl.constexpr, BK: tl.constexpr):
    """(N, K) to (K, N), tile by tile."""
    n = (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)
    k = (tl.program_id(1) * BK + tl.arange(0, BK)).to(tl.int64)
    inside = (n < N)[:, None] & (k < K)[None, :]
    tile = tl.load(w + n[:, None] * K + k[None, :], mask=inside, other=0)
    tl.store(t + k[:, None] * N + n[None, :], tl.trans(tile), mask=tl.trans(inside))


@triton.jit
def _pack(x, q, scale, count, G: tl.constexpr, BLOCK: tl.constexpr):
    """Groups (count, G) in int8 and a scale for each."""
    at = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    place = at[:, None] * G + tl.arange(0, G)[None, :]
    inside = at < count
    values = tl.load(x + place, mask=inside[:, None], other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(values), 1), 1e-12 * 127)
    near = (values * (127 / largest)[:, None] + 12582912.0) - 12582912.0
    tl.store(q + place, near.to(tl.int8), mask=inside[:, None])
    tl.store(scale + at, largest / 127, mask=inside)


@triton.jit
def _unpack(q, scale, x, count, G: tl.constexpr, BLOCK: tl.constexpr):
    """What `_pack` was given."""
    at = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    place = at[:, None] * G + tl.arange(0, G)[None, :]
    inside = at < count
    by = tl.load(scale + at, mask=inside, other=0.0)
    values = tl.load(q + place, mask=inside[:, None], other=0).to(tl.float32) * by[:, None]
    tl.store(x + place, values.to(x.dtype.element_ty), mask=inside[:, None])


def product(
    a: torch.Tensor,
    w: torch.Tensor,
    scale_a: torch.Tensor,
    scale_w: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(M, K) by (N, K) in int8 to (M, N), with one scale for each row of both, in float32."""
    (rows, length), outputs = a.shape, w.shape[0]
    y = torch.empty(rows, outputs, dtype=dtype, device=a.device)
    capability = torch.cuda.get_device_capability(a.device)
    tile = _tile(rows, capability)
    count = triton.cdiv(rows, tile.m) * triton.cdiv(outputs, tile.n)
    sizes = {
        "BM": tile.m,
        "BN": tile.n,
        "BK": tile.k,
        "GROUP": _GROUP,
        "HAS_BIAS": bias is not None,
    }
    compiled = {"num_warps": tile.warps, "num_stages": tile.stages}
    rest = (scale_a, scale_w, bias, y, rows, outputs, length)
    if tile is _HOPPER and _copies_tiles(a, w):
        left = _describe(a, [tile.m, tile.k])
        right = _describe(w, [tile.n, tile.k])
        _on(_product_by_tiles, (count,))(left, right, *rest, **sizes, **compiled)
    else:
        _on(_product, (count,))(a, w, *rest, EVEN=length % tile.k == 0, **sizes, **compiled)
    return y


def quantized(
    x: torch.Tensor, factor: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (M, K) in int8, and their scales (M, 1): the row, times `factor` (K), is q · scale."""
    rows, length = x.shape
    q = torch.empty(rows, length, dtype=torch.int8, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(length)
    _on(_quantize, (rows,))(
        x.contiguous(),
        factor,
        q,
        scale,
        length,
        HAS_FACTOR=factor is not None,
        BK=block,
        num_warps=min(16, max(1, block // 1024)),
    )
    return q, scale


def turned(w: torch.Tensor) -> torch.Tensor:
    """The transpose (K, N) of a matrix of bytes (N, K), without gaps."""
    outputs, length = w.shape
    t = torch.empty(length, outputs, dtype=w.dtype, device=w.device)
    grid = (triton.cdiv(outputs, 128), triton.cdiv(length, 128))
    _on(_turn, grid)(w, t, outputs, length, BN=128, BK=128, num_warps=8)
    return t


def pack(groups: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    """Fill `q` (count, G) and `scale` (count, 1) with `groups` (count, G) in int8."""
    count, size = groups.shape
    _on(_pack, (triton.cdiv(count, _GROUPS),))(
        groups, q, scale, count, G=size, BLOCK=_GROUPS, num_warps=4
    )


def unpack(q: torch.Tensor, scale: torch.Tensor, groups: torch.Tensor) -> None:
    """The other way round."""
    count, size = groups.shape
    _on(_unpack, (triton.cdiv(count, _GROUPS),))(
        q, scale, groups, count, G=size, BLOCK=_GROUPS, num_warps=4
    )


def _copies_tiles(*matrices: torch.Tensor) -> bool:
    """Whether the chip can: rows and matrices must begin at whole 16 bytes."""
    if _describe is None:
        return False
    return all(m.data_ptr() % 16 == 0 and m.shape[1] % 16 == 0 for m in matrices)


@functools.cache
def _tile(rows: int, capability: tuple[int, int]) -> Tile:
    if rows <= _FEW_ROWS.m:
        return _FEW_ROWS
    return _HOPPER if capability[0] == 9 else _OTHERS


def _on(kernel: Any, grid: tuple[int, ...]) -> Any:
    return kernel[grid]


def kernels() -> dict[str, Any]:
    """Every kernel by name, for those who compile or measure them one by one."""
    return {
        "product": _product,
        "product by tiles": _product_by_tiles,
        "quantize": _quantize,
        "turn": _turn,
        "pack": _pack,
        "unpack": _unpack,
    }
