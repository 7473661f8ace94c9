"""Attention whose backward pass takes the heads a part at a time.

The kernels sum up the gradient of the queries in float32, for all heads that they are given: of a
long video twice the memory of the queries. In parts only those of one part exist at once. Heads know
nothing of each other, so the numbers are the same.

Axes: B batch, L tokens, H heads, D head size.
"""

from __future__ import annotations

import torch

_CUDNN = 3  # as PyTorch numbers its kernels


def attention_in_parts(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: int
) -> torch.Tensor:
    """Softmax attention, B L H D in and out; its backward pass takes the heads in `parts`."""
    return torch.ops.musubi.attention(q, k, v, parts)[0]


def in_parts_there(q: torch.Tensor) -> bool:
    """Whether there is a kernel for it."""
    if q.device.type != "cuda":
        return q.device.type == "cpu"
    return q.itemsize == 2 and torch.version.hip is None and _capable(q.device.index or 0)


def _capable(index: int) -> bool:
    return torch.cuda.get_device_capability(index) >= (8, 0)


@torch.library.custom_op(
    "musubi::attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, int parts) -> (Tensor, Tensor)",
)
def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, B L H D, and the logarithms of the sums, B H L in float32."""
    given = [t.transpose(1, 2) for t in (q, k, v)]
    if not q.is_cuda:
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*given)
    elif _cudnn(*given):
        out, sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(*given, None, True)
    else:
        out, sums, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*given)
    return out.transpose(1, 2).contiguous(), sums.reshape(given[0].shape[:3]).contiguous()


@_forward.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    count, length, heads, _ = q.shape
    sums = torch.empty((count, heads, length), dtype=torch.float32, device=q.device)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), sums


@torch.library.custom_op(
    "musubi::attention_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor q, Tensor k, Tensor v, Tensor out, Tensor sums, int parts)"
    " -> (Tensor, Tensor, Tensor)",
)
def _backward(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    parts: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, step = q.shape[2], -(-q.shape[2] // parts)
    whole = [t.transpose(1, 2) for t in (gradient, q, k, v, out)]
    chosen = q.is_cuda and _cudnn(*whole[1:4])
    found = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v)]
    for start in range(0, heads, step):
        part = slice(start, start + step)
        made = _of_heads([t[:, part] for t in whole], sums[:, part].contiguous(), chosen)
        for there, one in zip(found, made, strict=True):
            there[:, :, part] = one.transpose(1, 2)
        del made
    return found[0], found[1], found[2]


@_backward.register_fake
def _(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    parts: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a, b, c = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    return a, b, c


def _of_heads(given: list[torch.Tensor], sums: torch.Tensor, cudnn: bool) -> list[torch.Tensor]:
    """Gradients of queries, keys and values, by the kernel that computed forward."""
    q, k = given[1:3]
    lengths, seed = (q.shape[2], k.shape[2]), None
    if q.is_cuda:  # of a dropout that there is not
        seed = torch.zeros((), dtype=torch.int64, device=q.device)
    if not q.is_cuda:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return list(kernel(*given, sums, 0.0, False))
    if cudnn:
        kernel = torch.ops.aten._scaled_dot_product_cudnn_attention_backward
        sums = sums.unsqueeze(-1)
        return list(kernel(*given, sums, seed, seed, None, None, None, *lengths, 0.0, False))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_backward
    return list(kernel(*given, sums, None, None, *lengths, 0.0, False, seed, seed))


def _cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether PyTorch would take cuDNN's kernel; else its own."""
    return torch._fused_sdp_choice(q, k, v) == _CUDNN  # type: ignore[attr-defined]


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:  # type: ignore[type-arg]
    q, k, v, parts = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.parts = parts  # type: ignore[attr-defined]


def _gradients(
    ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor, _: object
) -> tuple:  # type: ignore[type-arg]
    saved = ctx.saved_tensors  # type: ignore[attr-defined]
    return (*torch.ops.musubi.attention_backward(gradient, *saved, ctx.parts), None)  # type: ignore[attr-defined]


_forward.register_autograd(_gradients, setup_context=_keep)

OPERATOR = torch.ops.musubi.attention.default
"""What a policy that chooses by operator sees of it."""
