"""Matrices in e4m3 with a scale for each row: rounding, and products in the tensor units of Ada and later."""

from __future__ import annotations

import torch

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
_SMALLEST_SCALE = 1e-12


def rows(
    x: torch.Tensor, *, factor: torch.Tensor | None = None, scaled: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix (M, K) in e4m3, and the float32 scale (M, 1) that each row is multiplied by.

    Args:
        x: Any floating-point dtype.
        factor: (K,), what each column is multiplied by before.
        scaled: Scale each row so that its largest number is 448; else all scales are one, and
            numbers beyond 448 are cut off.
    """
    wide = x.float() if factor is None else x.float() * factor
    if not scaled:
        return wide.clamp(-LARGEST, LARGEST).to(E4M3), torch.ones_like(wide[:, :1])
    scale = wide.abs().amax(1, keepdim=True).clamp(min=_SMALLEST_SCALE) / LARGEST
    return (wide / scale).to(E4M3), scale


def turned(weight: torch.Tensor) -> torch.Tensor:
    """The transpose, without gaps."""
    return weight.t().contiguous()


def multiplies(device: torch.device) -> bool:
    """Whether the device multiplies matrices in e4m3 with a scale for each row."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    a = torch.ones(16, 32, device=device).to(E4M3)
    ones = torch.ones(16, 1, device=device)
    try:
        product(a, a, ones, ones, None, torch.bfloat16)
    except RuntimeError:
        return False
    return True


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(M, K) by (N, K) to (M, N), with scales (M, 1) and (N, 1); summed in float32."""
    if not a.is_cuda:  # the same numbers without the units
        y = (a.float() * scale_a) @ (b.float() * scale_b).t()
        return (y if bias is None else y + bias).to(dtype)
    half = torch.bfloat16  # the only dtype the units give with scales by row
    y = torch._scaled_mm(  # type: ignore[attr-defined]
        a,
        b.t(),
        scale_a=scale_a,
        scale_b=scale_b.t(),
        bias=None if bias is None else bias.to(half),
        out_dtype=half,
        use_fast_accum=True,
    )
    return y.to(dtype)
