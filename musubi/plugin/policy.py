"""What may be done to one network's memory: a plain value, chosen by flags or by the planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Storage = Literal["kept", "fp8", "fp8_scaled"]
Recompute = Literal["none", "attention", "blocks"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a network's weights and activations are kept.

    Args:
        storage: "kept" as they are loaded; "fp8" cast to e4m3; "fp8_scaled" in e4m3 with a
            float32 scale for each row. Both hold only what `Traits.quantize` names.
        products: Multiply 8-bit weights in 8 bits where the chip can; else each is expanded to the
            compute dtype for its product.
        streamed: For each stack of `Traits.stacks`, how many of its last blocks live in host
            memory and visit the device when they are needed. Missing stacks stream none.
        recompute: What a training step computes again in its backward pass: nothing; all of a
            block but its attention outputs; or all of a block.
        offload_activations: What the blocks keep for the backward pass waits in host memory.
        slices: In how many slices along the tokens feed-forward layers are computed.
        compile: Each block is compiled: element-wise chains become one kernel.
    """

    storage: Storage = "kept"
    products: bool = False
    streamed: tuple[int, ...] = ()
    recompute: Recompute = "none"
    offload_activations: bool = False
    slices: int = 1
    compile: bool = False
