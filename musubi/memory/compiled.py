"""Compile: one compilation serves every block of a kind; element-wise chains become one kernel.

Recomputation happens inside what is compiled, so that its forward and backward pass are planned
together and nothing is written twice.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from musubi.errors import ConfigError
from musubi.memory import recompute
from musubi.memory.blocks import blocks, wrap
from musubi.plugin.policy import Recompute
from musubi.plugin.traits import Traits

NAME = "compile"
# Kinds of blocks, sizes, and with or without gradients: each is a version of the same function.
_VERSIONS = 64
# CUDA graphs replay fixed addresses, and streamed weights have none.
_WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """How blocks are compiled: `torch.compile`'s own words.

    Args:
        backend: "inductor", or one that PyTorch knows.
        mode: "default", "max-autotune", …; CUDA graphs are always left out.
        dynamic: True makes the first compilation fit every size; None the second one; False none.
        fullgraph: Refuse what cannot be one graph.
    """

    backend: str | Callable[..., Any] = "inductor"
    mode: str | None = None
    dynamic: bool | None = None
    fullgraph: bool = False


def apply(
    module: nn.Module,
    traits: Traits,
    compiler: Compiler,
    *,
    recomputed: Recompute = "none",
) -> None:
    """Compile the blocks of `traits.stacks`, each on its first call.

    Args:
        module: The network.
        traits: Its traits.
        compiler: How.
        recomputed: What a step with gradients computes again in its backward pass.

    Raises:
        ConfigError: This platform cannot compile.
    """
    check(compiler, next(module.parameters()).device)
    _leave_out_advice()
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, _VERSIONS)
    made: dict[type[nn.Module], Any] = {}
    for block in blocks(module, traits):
        kind = type(block)
        if kind not in made:
            made[kind] = _around(kind, compiler, recomputed)
        wrap(block, NAME, made[kind])


def check(compiler: Compiler, device: torch.device) -> None:
    """Whether blocks can be compiled for that device.

    Raises:
        ConfigError: Blocks cannot be compiled here; the message says what is missing.
    """
    if compiler.backend != "inductor" or device.type != "cuda":
        return
    if importlib.util.find_spec("triton") is None:
        package = "triton-windows" if sys.platform == "win32" else "triton"
        raise ConfigError(
            "--compile needs the package 'triton', and it is not installed.",
            fix=f"Install it with `pip install {package}`, or leave out --compile.",
        )


def _leave_out_advice() -> None:
    """Hide a warning of PyTorch about choosing which tensors to keep; it does not apply, since
    blocks change nothing in place.
    """
    logger = logging.getLogger("torch._higher_order_ops.wrap")
    if not any(isinstance(one, _Advice) for one in logger.filters):
        logger.addFilter(_Advice())


class _Advice(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "context_fn is passed" not in record.getMessage()


def _around(kind: type[nn.Module], compiler: Compiler, recomputed: Recompute) -> Any:
    words: dict[str, Any] = {
        "backend": compiler.backend,
        "dynamic": compiler.dynamic,
        "fullgraph": compiler.fullgraph,
    }
    mode = _WITHOUT_GRAPHS.get(compiler.mode or "default", compiler.mode)
    if compiler.backend == "inductor":
        words["options"] = {**_lean(), **_options_of(mode)}
    elif mode != "default":
        words["mode"] = mode
    plain = torch.compile(kind.forward, **words)
    again = plain
    if recomputed != "none":
        again = torch.compile(_recomputed(kind, recomputed), **words)

    def around(block: nn.Module, inner: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(block, *args, **kwargs)
        return again(block, *_differentiable(args), **kwargs)

    return around


def _lean() -> dict[str, Any]:
    """Inductor holds on to a dead tensor for the next one of its size, and memory with it."""
    return {"allow_buffer_reuse": False} if "allow_buffer_reuse" in _known() else {}


@functools.cache
def _known() -> frozenset[str]:
    from torch import _inductor

    return frozenset(_inductor.list_options())


def _options_of(mode: str | None) -> dict[str, Any]:
    """What a mode means; a mode and options do not go together."""
    from torch import _inductor

    return {} if mode in (None, "default") else dict(_inductor.list_mode_options(mode))


def _recomputed(kind: type[nn.Module], recomputed: Recompute) -> Callable[..., Any]:
    more = {"context_fn": recompute.contexts} if recomputed == "attention" else {}
    call = functools.partial(checkpoint, use_reentrant=False, **more)

    def forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return call(kind.forward, block, *args, **kwargs)

    return forward


def _differentiable(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Make the first block's input require a gradient, so that this block needs no compiled version
    of its own.
    """
    first = args[0] if args else None
    if isinstance(first, torch.Tensor) and first.is_floating_point() and not first.requires_grad:
        return (first.detach().requires_grad_(), *args[1:])
    return args
