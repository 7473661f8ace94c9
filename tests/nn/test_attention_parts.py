"""Attention that takes its heads in parts, backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from musubi.nn import attention as door
from musubi.nn.attention_parts import attention_in_parts


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_gradients_are_those_of_the_definition(parts):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 9, 4, 8, dtype=torch.float64).requires_grad_() for _ in range(3))
    scores = torch.einsum("blhd,bmhd->bhlm", q, k) * 8**-0.5
    expected = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    narrow = [t.detach().float().requires_grad_() for t in (q, k, v)]
    out = attention_in_parts(*narrow, parts)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad((out * weights.float()).sum(), narrow)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_heads_that_lie_in_one_tensor_and_keys_of_another_length():
    torch.manual_seed(1)
    joined = torch.randn(1, 12, 3, 4, 16).requires_grad_()
    q, k, v = joined.unbind(2)
    with door.in_parts(2):
        out = door.attention(q, k[:, :7], v[:, :7])
    (found,) = torch.autograd.grad(out.square().sum(), joined)
    plain = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k[:, :7], v[:, :7])))
    (wanted,) = torch.autograd.grad(plain.square().sum(), joined)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_choice_ends_with_the_block():
    with door.in_parts(4):
        assert door._chosen.parts == 4
    assert door._chosen.parts == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("length", [300, 2048])
@pytest.mark.parametrize("parts", [1, 4, 5])
def test_on_a_device_in_16_bits(parts, length):
    torch.manual_seed(2)
    q, k, v = (
        torch.randn(1, length, 5, 128, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for _ in range(3)
    )
    out = attention_in_parts(q, k, v, parts)
    weights = torch.randn_like(out)
    found = torch.autograd.grad((out * weights).sum(), (q, k, v))
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    scores = torch.einsum("blhd,bmhd->bhlm", wide[0], wide[1]) * 128**-0.5
    expected = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), wide[2])
    wanted = torch.autograd.grad((expected * weights.double()).sum(), wide)
    for one, other in zip((out, *found), (expected, *wanted), strict=True):
        assert (one.double() - other).norm() / other.norm() < 2e-2
