"""Runs a text encoder without weights (only shapes), and records its allocations and products."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from musubi.estimate.record import filled
from musubi.estimate.trace import Op, Recorder, Trace, walk
from musubi.memory import quantized
from musubi.plan.workload import Network
from musubi.plugin import Architecture, Component, Prompt
from musubi.weights.meta import on_meta

# Tokens of a caption where the architecture sets no limit.
TOKENS = 512
# Without a recording: how many tensors as wide as the widest layer are alive at once.
_ALIVE = 6

# Recordings of this process: what was recorded → the recording, and the component (kept alive, so
# that its id is not used again).
_traces: dict[Hashable, tuple[Component, Trace]] = {}


def record(
    architecture: Architecture, network: Network, *, eight: bool, tokens: int | None = None
) -> Trace:
    """The operations of one caption.

    The architecture's own encoding code is run with a tokenizer that gives captions of the greatest
    length. An encoder that cannot be run in this way is counted by its layers.

    Args:
        architecture: The architecture of the text encoder.
        network: The encoder at its size.
        eight: Whether its large matrices are stored in 8 bits.
        tokens: Length of the caption; None: the greatest length.
    """
    numbers = tuple((k, str(v)) for k, v in sorted(network.numbers.items()))
    key = (id(network.component), numbers, network.dtype, eight, tokens)
    if key not in _traces:
        module = on_meta(network.component, network.numbers, network.dtype)
        if eight:
            quantized.convert(
                module, network.component.traits, quantized_matmul=False, storage="fp8_scaled"
            )
        linear = [
            (m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)
        ]
        try:
            trace = _run(architecture, network.component.name, module, tokens)
        except Exception:  # an extension may read captions in any way: its layers are known
            trace = Trace()
        if not trace.ops:
            trace = _counted(linear, eight, tokens or TOKENS)
        _traces[key] = (network.component, trace)
    return _traces[key][1]


def _run(architecture: Architecture, name: str, module: nn.Module, tokens: int | None) -> Trace:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = Recorder()
    with mode:
        filled(module)
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with mode:
            args, kwargs = walk((args, kwargs), mode.from_tensor)
            with recorder:
                out = inner(*args, **kwargs)
        # Code after the network reads numbers: masks and lengths are real, this output is empty.
        return walk(out, lambda t: torch.zeros(t.shape, dtype=t.dtype))

    module.forward = forward
    task = next(t for t in architecture.tasks if name in t.components)
    options = {option.name: option.default for option in architecture.options}
    runtime = architecture.runtime(architecture, task, options)
    with torch.no_grad():
        recorded = Recorded({name: module}, FullLengthTokenizer(tokens))
        runtime.encode_text(recorded, name, [Prompt(text="plan")])
    return recorder.trace


def _counted(linear: Sequence[tuple[int, int]], eight: bool, tokens: int) -> Trace:
    """One product for each layer, its weight expanded before it."""
    widest = max((max(sizes) for sizes in linear), default=1)
    live = 4 * tokens * widest * _ALIVE
    trace = Trace()
    for inner, outer in linear:
        size = inner * outer
        peak = live
        if eight:  # one layer at a time: to float32, times its scales, to 16 bits
            peak += 10 * size
            trace.ops.append(_op("_to_copy", 0.0, 5 * size, peak, widens=True))
            trace.ops.append(_op("mul", 0.0, 8 * size, peak))
            trace.ops.append(_op("_to_copy", 0.0, 6 * size, peak))
        trace.ops.append(_op("mm", 2.0 * tokens * size, 2 * size, peak))
    return trace


def _op(name: str, flops: float, traffic: int, live: int, *, widens: bool = False) -> Op:
    kind = "product" if flops else "elementwise"
    return Op(name, kind, (), (), flops, traffic, live, 0, widens)


class Recorded:
    """Networks in shapes, for a runtime.

    Args:
        modules: Component name → the network.
        tokenizer: Of a text encoder.
    """

    device = torch.device("cpu")

    def __init__(
        self, modules: Mapping[str, nn.Module], tokenizer: FullLengthTokenizer | None = None
    ) -> None:
        self._modules, self._tokenizer = modules, tokenizer

    def __getitem__(self, name: str) -> nn.Module:
        return self._modules[name]

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def free(self, name: str) -> None:
        """Do nothing, since the networks take no memory."""

    def tokenizer(self, name: str) -> Any:
        if self._tokenizer is None:
            raise KeyError(name)
        return self._tokenizer


class FullLengthTokenizer:
    """Called like the tokenizers of transformers; every caption has the greatest length.

    Args:
        tokens: Tokens of a caption; None: `max_length`.
    """

    bos_token_id = 0
    pad_token_id = 1
    eos_token_id = 2

    def __init__(self, tokens: int | None = None) -> None:
        self._tokens = tokens

    def __call__(
        self, text: str | Sequence[str], *, max_length: int | None = None, **_: Any
    ) -> Mapping[str, Any]:
        """Tokens and mask: B L tensors for several texts; for one, a list of some length."""
        if isinstance(text, str):
            # Four letters a token is what tokenizers for English reach.
            return {"input_ids": [3] * -(-len(text) // 4)}
        length = self._tokens or max_length or TOKENS
        ids = torch.full((len(text), length), 3)
        ids[:, -1] = self.eos_token_id
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
