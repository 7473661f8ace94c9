"""Matrices in int8 with a scale for each row: rounding, and products in the integer units of Turing and later.

Sums are exact in int32, so every way to multiply gives the same numbers: a Triton kernel where there
is one, else PyTorch's own product of integers, on a processor too. Both are operators of their own,
so that a compiler takes each as one piece. Dettmers et al., https://arxiv.org/abs/2208.07339.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from types import ModuleType

import torch
import torch.nn.functional as F

LARGEST = 127.0
_SMALLEST = 127e-12
# PyTorch's product of integers takes more rows than this on a CUDA device.
_FEW_ROWS = 16
# Rows whose sums exist in int32 at once, where no kernel scales them at once.
_CHUNK = 4096


def rows(
    x: torch.Tensor, *, factor: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix (M, K) in int8, and the float32 scale (M, 1) that each row is multiplied by.

    Each row is scaled so that its largest number is 127, and rounded to the nearest.

    Args:
        x: Any floating-point dtype.
        factor: (K,), what each column is multiplied by before.
    """
    if torch.compiler.is_compiling():  # fused with what comes before
        return rounded(x, factor)
    return torch.ops.musubi.int8_rows(x, factor)


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(M, K) by (N, K) to (M, N), with scales (M, 1) and (N, 1)."""
    return torch.ops.musubi.int8_product(a, b, scale_a, scale_b, bias, dtype)


def turned(weight: torch.Tensor) -> torch.Tensor:
    """The transpose, without gaps."""
    if not torch.compiler.is_compiling() and (found := kernels(weight)) is not None:
        return found.turned(weight)
    return weight.t().contiguous()


def multiplies(device: torch.device) -> bool:
    """Whether the device multiplies matrices in int8."""
    if device.type != "cuda":
        return False
    a = torch.ones(32, 32, device=device, dtype=torch.int8)
    ones = torch.ones(32, 1, device=device)
    try:
        product(a, a, ones, ones, None, torch.bfloat16)
    except RuntimeError:
        return False
    return True


def rounded(
    x: torch.Tensor, factor: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rows` in plain operations."""
    wide = x.float() if factor is None else x.float() * factor
    largest = wide.abs().amax(1, keepdim=True).clamp(min=_SMALLEST)
    return (wide * (LARGEST / largest)).round().to(torch.int8), largest / LARGEST


@torch.library.custom_op(
    "musubi::int8_rows",
    mutates_args=(),
    schema="(Tensor x, Tensor? factor) -> (Tensor, Tensor)",
)
def _rows(x: torch.Tensor, factor: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    if (found := kernels(x)) is not None:
        return found.quantized(x, factor)
    return rounded(x, factor) if len(x) <= _CHUNK else _rounded_in_chunks(x, factor, _CHUNK)


@_rows.register_fake
def _(x: torch.Tensor, factor: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    scale = torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)
    return torch.empty(x.shape, dtype=torch.int8, device=x.device), scale


@torch.library.custom_op(
    "musubi::int8_product",
    mutates_args=(),
    schema="(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor? bias, ScalarType dtype)"
    " -> Tensor",
)
def _product(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    if (found := kernels(a)) is not None:
        return found.product(a, b.contiguous(), scale_a, scale_b, bias, dtype)
    count = len(a)
    if a.is_cuda and count <= _FEW_ROWS:
        a = F.pad(a, (0, 0, 0, 2 * _FEW_ROWS - count))
        scale_a = F.pad(scale_a, (0, 0, 0, len(a) - count))
    y = _multiplied(a, b, scale_a, scale_b, bias, dtype, _CHUNK)
    return y if len(y) == count else y[:count].clone()


@_product.register_fake
def _(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    return torch.empty((a.shape[0], b.shape[0]), dtype=dtype, device=a.device)


def _rounded_in_chunks(
    x: torch.Tensor, factor: torch.Tensor | None, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_rounded` of so many rows at a time: only these exist in float32."""
    q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        q[part], scale[part] = rounded(x[part], factor)
    return q, scale


def _multiplied(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    step: int,
) -> torch.Tensor:
    """`product` by PyTorch's own product of integers, so many rows at a time, or up to twice as many."""
    y = torch.empty(len(a), len(b), dtype=dtype, device=a.device)
    starts = range(0, max(1, len(a) - step + 1), step)  # the last one takes what is left
    for start, end in itertools.pairwise([*starts, len(a)]):
        sums = torch.ops.aten._int_mm(a[start:end], b.t()) * scale_a[start:end]
        if bias is None:
            torch.mul(sums, scale_b.t(), out=y[start:end])
        else:
            torch.addcmul(bias, sums, scale_b.t(), out=y[start:end])
    return y


def kernels(x: torch.Tensor) -> ModuleType | None:
    """The Triton kernels, where there are any for the device of `x`."""
    return _found(x.device) if x.is_cuda else None


@functools.cache
def _found(device: torch.device) -> ModuleType | None:
    """The Triton kernels, where Triton is installed and knows the device; it knows none before Ampere."""
    if importlib.util.find_spec("triton") is None:
        return None
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from musubi.memory import int8_kernels
    except ImportError:
        return None
    return int8_kernels
