"""How the tensors of a merged checkpoint are stored, when not as before: in 16, 32 or 8 bits.

8 bits with scales are written as ComfyUI's `fp8_scaled` files have them: a weight in e4m3, one float32
number `scale_weight` beside it, and an empty-handed marker `scaled_fp8`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from musubi.plugin.traits import Traits, named
from musubi.weights.contents import Inspection
from musubi.weights.dtypes import FP8, parse_dtype
from musubi.weights.files import Weights
from musubi.weights.scaled import split_scales

E4M3 = torch.float8_e4m3fn
_LARGEST = float(torch.finfo(E4M3).max)
_MARKER = "scaled_fp8"
_SCALE = "scale_weight"
Entry = tuple[str, torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Recast:
    """The entries of a file that is stored in another precision.

    Args:
        entries: Name, dtype and shape of each tensor.
        scaled: Name of a scale → the weight that it is of.
        kept: Names that are copied as they are.
        marker: Name of the marker, or None.
    """

    entries: list[Entry]
    scaled: dict[str, str] = field(default_factory=dict[str, str])
    kept: frozenset[str] = frozenset()
    marker: str | None = None

    @classmethod
    def plan(cls, weights: Weights, contents: Inspection, traits: Traits, precision: str) -> Recast:
        """What a checkpoint looks like in a precision.

        Args:
            weights: The open file.
            contents: What it is.
            traits: Of its network: what 8 bits may hold, and what stays in float32.
            precision: "fp32", "bf16", "fp16", "fp8" or "fp8_scaled".
        """
        plain, scales = split_scales(weights.names)
        ours = {theirs: o for o, s in contents.sources.items() for theirs in s.names}
        eight = precision.startswith("fp8")
        entries, kept, scaled = list[Entry](), set[str](), dict[str, str]()
        for name in plain:
            stored, shape = weights.dtypes[name], tuple(weights.shapes[name])
            known = ours.get(name)
            if known is None or not (stored.is_floating_point or name in scales):
                kept.add(name)
                entries.append((name, stored, shape))
            elif eight and len(shape) == 2 and named(known, traits.quantize):
                entries.append((name, E4M3, shape))
                if precision == "fp8_scaled":
                    scale = f"{name.removesuffix('.weight')}.{_SCALE}"
                    scaled[scale] = name
                    entries.append((scale, torch.float32, ()))
            else:
                wide = torch.bfloat16 if stored in FP8 or name in scales else stored
                precise = eight or named(known, traits.fp32)
                entries.append((name, wide if precise else parse_dtype(precision), shape))
        marker = f"{contents.dialect.prefix}{_MARKER}" if scaled else None
        if marker is not None:
            # Two numbers say: expand the weights for each product, do not multiply in 8 bits.
            entries.append((marker, E4M3, (2,)))
        return cls(entries, scaled, frozenset(kept), marker)

    def made(self, name: str, merged: Callable[[str], torch.Tensor]) -> torch.Tensor | None:
        """A tensor that no checkpoint had before: a scale, or the marker; else None.

        Args:
            name: Of the tensor.
            merged: Gives a weight.
        """
        if name == self.marker:
            return torch.zeros(2, dtype=E4M3)
        if name in self.scaled:
            return scale_of(merged(self.scaled[name])).cpu()
        return None

    def shrunk(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A weight divided by its scale, where it has one."""
        return weight / scale_of(weight) if name in self.scaled.values() else weight


def scale_of(weight: torch.Tensor) -> torch.Tensor:
    """What the numbers of a weight are divided by, so that the largest is the largest of e4m3."""
    return (weight.float().abs().amax() / _LARGEST).clamp(min=1e-12)
