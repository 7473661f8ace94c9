"""What may be done to one network's memory: a plain value, chosen by flags or by the planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Storage = Literal["native", "fp8", "fp8_scaled", "int8"]
Recompute = Literal["none", "attention", "blocks"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a network's weights and activations are kept.

    Args:
        storage: "native" as they are loaded; "fp8" cast to e4m3; "fp8_scaled" in e4m3, and
            "int8" in int8, with a float32 scale for each row. All hold only what `Traits.quantize` names.
        quantized_matmul: Multiply 8-bit weights in 8 bits where the chip can; else each is expanded to the
            compute dtype for its product.
        streamed: For each stack of `Traits.stacks`, how many of its last blocks live in host
            memory and visit the device when they are needed. Missing stacks stream none.
        recompute: What a training step computes again in its backward pass: nothing; all of a
            block but its attention outputs; or all of a block.
        offload_activations: What the blocks keep for the backward pass waits in host memory.
        offload_8bit: It waits in int8, with a scale for each 128 numbers: half the memory.
        ffn_chunks: In how many slices along the tokens feed-forward layers are computed.
        attention_chunks: In how many parts the backward pass of attention takes the heads.
        compile: Each block is compiled: element-wise chains become one kernel.
    """

    storage: Storage = "native"
    quantized_matmul: bool = False
    streamed: tuple[int, ...] = ()
    recompute: Recompute = "none"
    offload_activations: bool = False
    offload_8bit: bool = False
    ffn_chunks: int = 1
    attention_chunks: int = 1
    compile: bool = False
