"""Attention through one door: the caller says what to attend over, the user chose how.

Axes: B batch, L tokens, H heads, D head size. Back ends are imported when they are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from musubi.errors import ConfigError, MissingPackageError, did_you_mean
from musubi.nn.attention_parts import attention_in_parts, in_parts_there

# Gradients of attention over a few keys, such as a text's, need little.
_FEW_KEYS = 4
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class _Choice:
    backend: str
    kernel: Kernel
    split: bool
    parts: int = 1


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    lengths: Sequence[int] | None = None,
) -> torch.Tensor:
    """Softmax attention, B L H D in and out, scaled by D ** -0.5.

    Args:
        q: Queries, B Lq H D.
        k: Keys, B Lk H D.
        v: Values, B Lk H D.
        lengths: How many leading keys of each item are real, as host integers; None means all.
            Items of unequal length are computed one by one, each over its own keys: no mask is
            built, and an item's result is the same in any company.

    Raises:
        ConfigError: The chosen back end cannot do what is needed.
    """
    if _chosen.backend == "sage" and torch.is_grad_enabled():
        _refuse_gradient(q, k, v)
    if lengths is not None and all(n == k.shape[1] for n in lengths):
        lengths = None
    if lengths is None and not (_chosen.split and q.shape[0] > 1):
        return _chosen.kernel(q, k, v)
    counts = [k.shape[1]] * q.shape[0] if lengths is None else list(lengths)
    return torch.cat(
        [
            _chosen.kernel(q[i : i + 1], k[i : i + 1, :n], v[i : i + 1, :n])
            for i, n in enumerate(counts)
        ]
    )


class _Used:
    """Undoes `use` at the end of a `with` block; outside of one it is left alone."""

    def __init__(self, before: _Choice) -> None:
        self._before = before

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        global _chosen  # noqa: PLW0603 - one choice a process, as the command line has one flag
        _chosen = self._before


def use(backend: str = "sdpa", split: bool = False) -> _Used:
    """Choose the back end from here on, or for the length of a `with` block.

    Args:
        backend: A name in `BACKENDS`, or an alias.
        split: Compute the items of a batch one after the other: less memory.

    Raises:
        ConfigError: There is no such back end.
        MissingPackageError: Its package is not installed.
    """
    global _chosen  # noqa: PLW0603
    name = ALIASES.get(backend, backend)
    if name not in BACKENDS:
        raise ConfigError(
            f"There is no attention back end {backend!r}.",
            fix=did_you_mean(backend, [*BACKENDS, *ALIASES]),
        )
    before = _chosen
    _chosen = _Choice(backend=name, kernel=_LOADERS[name](), split=split)
    return _Used(before)


def in_parts(parts: int) -> _Used:
    """From here on, or for the length of a `with` block, backward passes take the heads in `parts`.

    It is about PyTorch's own attention over many keys; other back ends are left as they are.
    """
    global _chosen  # noqa: PLW0603
    before = _chosen
    _chosen = replace(_chosen, parts=parts)
    return _Used(before)


def chosen() -> tuple[str, bool]:
    """The back end in use, and whether batches are split."""
    return _chosen.backend, _chosen.split


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    many = k.shape[1] * _FEW_KEYS >= q.shape[1]
    if _chosen.parts > 1 and many and torch.is_grad_enabled() and in_parts_there(q):
        return attention_in_parts(q, k, v, _chosen.parts)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _package(module: str, name: str, backend: str, install: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise MissingPackageError(
            f"The attention back end {backend!r} needs {module!r}, which cannot be imported: {error}.",
            fix=f"Install it with `{install}`, or choose sdpa.",
        ) from error


def _in_half(kernel: Kernel) -> Kernel:
    # These kernels know float16 and bfloat16 only.
    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        half = q.dtype if q.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
        return kernel(q.to(half), k.to(half), v.to(half)).to(q.dtype)

    return call


def _load_flash2() -> Kernel:
    kernel = _package(
        "flash_attn", "flash_attn_func", "flash2", "pip install musubi-diffusion[flash]"
    )
    return _in_half(kernel)


def _load_flash3() -> Kernel:
    kernel = _package(
        "flash_attn_interface",
        "flash_attn_func",
        "flash3",
        "pip install git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper",
    )

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = kernel(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # older releases add the log-sum-exp

    return _in_half(call)


def _load_xformers() -> Kernel:
    return _package(
        "xformers.ops",
        "memory_efficient_attention",
        "xformers",
        "pip install musubi-diffusion[xformers]",
    )


def _load_sage() -> Kernel:
    kernel = _package("sageattention", "sageattn", "sage", "pip install musubi-diffusion[sage]")
    return _in_half(lambda q, k, v: kernel(q, k, v, tensor_layout="NHD"))


def _refuse_gradient(*tensors: torch.Tensor) -> None:
    if any(t.requires_grad for t in tensors):
        raise ConfigError(
            "The attention back end 'sage' computes no gradients.",
            fix="Train with --sdpa; sage is for generation.",
        )


_LOADERS: dict[str, Callable[[], Kernel]] = {
    "sdpa": lambda: _sdpa,
    "flash2": _load_flash2,
    "flash3": _load_flash3,
    "xformers": _load_xformers,
    "sage": _load_sage,
}
BACKENDS = tuple(_LOADERS)
ALIASES = {"torch": "sdpa", "flash": "flash2", "sageattn": "sage"}

_chosen = _Choice(backend="sdpa", kernel=_sdpa, split=False)
