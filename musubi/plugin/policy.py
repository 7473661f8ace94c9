"""How one network uses memory: a plain value, chosen by flags or by the planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Storage = Literal["native", "fp8", "fp8_scaled", "int8"]
Recompute = Literal["none", "attention", "blocks"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a network's weights and activations are kept.

    Args:
        storage: How weights are stored: "native": as they are loaded; "fp8": cast to e4m3;
            "fp8_scaled" and "int8": in e4m3 or int8, with a float32 scale for each row. The last
            three apply only to the parameters that `Traits.quantize` names.
        quantized_matmul: Multiply 8-bit weights in 8 bits if the device can. If not, each weight is
            expanded to the compute dtype before it is multiplied.
        streamed: For each stack of `Traits.stacks`, how many of its last blocks are kept in host
            memory and copied to the device when they are needed. A stack that is missing here keeps
            all its blocks on the device.
        recompute: What a training step computes again in its backward pass: nothing; a whole block
            except its attention outputs; or a whole block.
        offload_activations: Keep the blocks' saved activations in host memory until the backward
            pass.
        offload_8bit: Keep these activations in int8, with a scale for each 128 numbers: half the
            memory.
        ffn_chunks: In how many slices along the tokens feed-forward layers are computed.
        attention_chunks: In how many parts the backward pass of attention takes the heads.
        compile: Compile each block, so that chains of element-wise operations become one kernel.
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
