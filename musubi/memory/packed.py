"""Activations in int8 with a scale for each 128 neighbours: half the memory on the host.

One tensor of bytes holds both, so that one copy takes it away: first the numbers, then the scales in
float32. Chen et al., ActNN, https://arxiv.org/abs/2104.14129, keep activations so.
"""

from __future__ import annotations

import torch

from musubi.memory import int8

GROUP = 128
_SCALE = 4  # bytes
PACKED = (GROUP + _SCALE) / (2 * GROUP)
"""What is left of a tensor in 16 bits."""
_CHUNK = 1 << 16  # groups that exist in float32 at once


def packs(tensor: torch.Tensor) -> bool:
    """Whether a tensor can be kept so: in 16 bits, and of whole groups."""
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return half and tensor.numel() % GROUP == 0 and tensor.numel() > 0


def packed(flat: torch.Tensor) -> torch.Tensor:
    """Bytes, n + n / 32 of them, for `flat` (n,)."""
    count = flat.numel() // GROUP
    made = torch.empty(count * (GROUP + _SCALE), dtype=torch.uint8, device=flat.device)
    numbers, scales = _parts(made)
    groups = flat.view(count, GROUP)
    if (kernels := int8.kernels(flat)) is not None:
        kernels.pack(groups, numbers, scales)
        return made
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        numbers[part], scales[part] = int8.rounded(groups[part])
    return made


def unpacked(made: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What `packed` was given, (n,) in that dtype, each number off by at most half a step."""
    numbers, scales = _parts(made)
    flat = torch.empty(numbers.shape, dtype=dtype, device=made.device)
    if (kernels := int8.kernels(made)) is not None:
        kernels.unpack(numbers, scales, flat)
        return flat.view(-1)
    for start in range(0, len(numbers), _CHUNK):
        part = slice(start, start + _CHUNK)
        flat[part] = numbers[part] * scales[part]
    return flat.view(-1)


def _parts(made: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    count = made.numel() // (GROUP + _SCALE)
    numbers = made[: count * GROUP].view(torch.int8).view(count, GROUP)
    return numbers, made[count * GROUP :].view(torch.float32).view(count, 1)
