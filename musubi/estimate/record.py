"""A step of a network that exists in shapes only, recorded: what one block of each stack costs.

Blocks of a stack are alike, so two of each are run: the first, whose input asks for no gradient,
and one that stands for all others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from musubi.errors import ConfigError
from musubi.estimate.example import example_batch
from musubi.estimate.trace import Recorder, Trace, walk
from musubi.memory import attention_chunks, ffn_chunks, fp8, quantized, recompute
from musubi.memory.blocks import stacks, wrap
from musubi.nn.fusing import as_if_compiled
from musubi.plugin import Architecture, Component, Conditioning, Task
from musubi.plugin.policy import Policy
from musubi.weights.meta import finished, on_meta

DEPTH = 2
Attach = Callable[[nn.Module], Sequence[nn.Parameter]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is run: one network at one size of video.

    Args:
        architecture: Whose network.
        task: What its records hold.
        numbers: Sizes of the DiT.
        width: Of the video, in pixels.
        height: Of the video, in pixels.
        frames: Of the video.
        batch: Videos in a step.
        dtype: Of the DiT's weights.
        compute: What autocast computes in; None: without autocast.
        attach: Puts what is trained on the network and returns its parameters; None: nothing is
            trained, and the case is a denoising step.
        experts: Denoisers of this size that the command has.
        parked: Those of them that rest wait in host memory.
        whole: The network itself is trained, and no adapter of it.
        shown: The case is a preview: a denoising step with the trained weights attached.
        calls: Calls of the network in a denoising step: two with classifier-free guidance.
        options: The architecture's own options.
    """

    architecture: Architecture
    task: Task
    numbers: Mapping[str, Any]
    width: int
    height: int
    frames: int
    batch: int = 1
    dtype: torch.dtype = torch.bfloat16
    compute: torch.dtype | None = torch.bfloat16
    attach: Attach | None = None
    experts: int = 1
    parked: bool = False
    whole: bool = False
    shown: bool = False
    calls: int = 2
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return self.attach is not None and not self.shown


def record(case: Case, policy: Policy) -> Trace:
    """Run a step with two blocks of each stack, and note what it allocates and multiplies.

    Of the policy, storage, quantized_matmul, recompute, ffn_chunks, attention_chunks and compile count; the rest follows from the figures.

    Marks: "in" and "out" of each block, "loss" after the forward pass of a training step, "back"
    before the backward pass of each block, "run" and "ran" around a block's own forward pass, which
    may be computed again, "end".

    Raises:
        ConfigError: The records' shapes are not known.
    """
    runtime = case.architecture.runtime(case.architecture, case.task, case.options)
    given = runtime.condition(_batch(case))
    if given.latents is None:
        raise TypeError("condition() returned no latents for a training batch")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    dit = _shallow(case, policy)
    with mode:
        filled(dit)
        fake = functools.partial(walk, change=mode.from_tensor)
        given = Conditioning(fake(dict(given.inputs)), fake(given.latents))
        recorder = Recorder()
        trained = [] if case.attach is None else list(case.attach(dit))
        _watch(dit, case.architecture.dit, recorder, policy)
        written_out = as_if_compiled() if policy.compile else nullcontext()
        with _units(), written_out, recorder:
            if not case.trains:
                _denoise(case, runtime, dit, given)
            else:
                _train(case, runtime, dit, given, recorder)
        recorder.mark("end")
        for parameter in trained:
            parameter.grad = None
    return recorder.trace


def _batch(case: Case) -> dict[str, Any]:
    try:
        return example_batch(
            case.architecture,
            case.task,
            case.numbers,
            width=case.width,
            height=case.height,
            frames=case.frames,
            batch=case.batch,
        )
    except ValueError as error:
        raise ConfigError(
            f"What {case.architecture.title} needs cannot be told: {error}.",
            fix="Its schema must say so in `usual`.",
        ) from error


def _shallow(case: Case, policy: Policy) -> nn.Module:
    """The network with two blocks a stack, stored as the policy says; on the meta device."""
    component = case.architecture.dit
    module = on_meta(component, case.numbers, case.dtype)
    for path in component.traits.stacks:
        stack = module.get_submodule(path)
        for name in list(stack._modules)[DEPTH:]:
            del stack._modules[name]
    if policy.storage != "native":
        quantized.convert(
            module,
            component.traits,
            quantized_matmul=policy.quantized_matmul,
            storage=policy.storage,
        )
    return module


def filled(module: nn.Module) -> None:
    """Give a network on the meta device tensors of the mode that is on, and have it finish."""
    for owner in module.modules():
        for leaf, parameter in owner._parameters.items():
            if parameter is not None:
                made = torch.empty(parameter.shape, dtype=parameter.dtype)
                owner._parameters[leaf] = nn.Parameter(made, requires_grad=False)
        for leaf, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[leaf] = torch.empty(buffer.shape, dtype=buffer.dtype)
    finished(module)


def _watch(dit: nn.Module, component: Component, recorder: Recorder, policy: Policy) -> None:
    every = [block for stack in stacks(dit, component.traits) for block in stack]
    for index, block in enumerate(every):
        wrap(block, "inside", functools.partial(_inside, recorder=recorder, index=index))
    if policy.ffn_chunks > 1:
        ffn_chunks.apply(dit, component.traits, policy.ffn_chunks, compiled=policy.compile)
    if policy.attention_chunks > 1:
        attention_chunks.apply(dit, component.traits, policy.attention_chunks)
    if policy.recompute != "none":
        recompute.apply(dit, component.traits, keep_attention=policy.recompute == "attention")
    for index, block in enumerate(every):
        wrap(block, "outside", functools.partial(_outside, recorder=recorder, index=index))


def _inside(
    block: nn.Module, inner: Any, *args: Any, recorder: Recorder, index: int, **kwargs: Any
) -> Any:
    recorder.mark("run", index)
    try:
        return inner(*args, **kwargs)
    finally:
        recorder.mark("ran", index)


def _outside(
    block: nn.Module, inner: Any, *args: Any, recorder: Recorder, index: int, **kwargs: Any
) -> Any:
    recorder.mark("in", index)
    out = inner(*args, **kwargs)
    recorder.mark("out", index)
    if not torch.is_grad_enabled():
        return out
    if isinstance(out, torch.Tensor):
        return _Edge.apply(recorder, index, out)[0]
    return type(out)(_Edge.apply(recorder, index, *out))


class _Edge(torch.autograd.Function):
    """Marks where the backward pass enters a block."""

    @staticmethod
    def forward(ctx: Any, recorder: Recorder, index: int, *outputs: torch.Tensor) -> Any:
        ctx.recorder, ctx.index = recorder, index
        return tuple(out.view_as(out) for out in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        ctx.recorder.mark("back", ctx.index)
        return None, None, *gradients


def _train(case: Case, runtime: Any, dit: nn.Module, given: Any, recorder: Recorder) -> None:
    dit.train()
    latents = given.latents
    t = torch.full((len(latents),), 0.5)
    clean = latents.float()
    noise = torch.randn_like(clean)
    level = t.view(-1, *[1] * (clean.ndim - 1))
    with _computing(case):
        found = runtime.predict(dit, clean * (1 - level) + noise * level, t, given)
    error = found.float() - (noise - clean)
    del found
    loss = error.square().flatten(1).mean(1).mean()
    del error
    recorder.mark("loss")
    loss.backward()


def _denoise(case: Case, runtime: Any, dit: nn.Module, given: Any) -> None:
    x = torch.randn_like(given.latents.float())
    t = torch.full((len(x),), 0.5)
    with torch.no_grad(), _computing(case):
        runtime.predict(dit, x, t, given).float()


@contextmanager
def _units() -> Iterator[None]:
    """Products in fp8 as the chip does them: without one they are wide, with copies."""

    def product(
        a: torch.Tensor,
        b: torch.Tensor,
        scale_a: torch.Tensor,
        scale_b: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        half = torch.bfloat16
        bias = None if bias is None else bias.to(half)
        multiply = torch._scaled_mm  # type: ignore[attr-defined]
        y = multiply(a, b.t(), scale_a=scale_a, scale_b=scale_b.t(), bias=bias, out_dtype=half)
        return y.to(dtype)

    before, fp8.product = fp8.product, product
    try:
        yield
    finally:
        fp8.product = before


@contextmanager
def _computing(case: Case) -> Iterator[None]:
    if case.compute in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=case.compute):
            yield
    else:
        yield
