"""Attention: the same answer whatever the back end's arrangement, and clear refusals."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from musubi.errors import ConfigError, MissingPackageError
from musubi.nn import attention as module
from musubi.nn.attention import attention, use


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, n, 2, 16, generator=generator) for n in (5, 7, 7)]


def plain(q, k, v):
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def test_equals_the_formula(qkv):
    torch.testing.assert_close(attention(*qkv), plain(*qkv))


def test_split_equals_whole(qkv):
    with use("sdpa", split=True):
        assert module.chosen() == ("sdpa", True)
        torch.testing.assert_close(attention(*qkv), plain(*qkv))
    assert module.chosen() == ("sdpa", False)


def test_lengths_ignore_what_lies_behind(qkv):
    q, k, v = qkv
    spoiled_k, spoiled_v = k.clone(), v.clone()
    spoiled_k[0, 3:], spoiled_v[0, 3:] = 1e4, 1e4
    found = attention(q, spoiled_k, spoiled_v, lengths=[3, 7, 5])
    for i, n in enumerate((3, 7, 5)):
        expected = plain(q[i : i + 1], k[i : i + 1, :n], v[i : i + 1, :n])
        torch.testing.assert_close(found[i : i + 1], expected)


def test_full_lengths_need_no_mask(qkv, monkeypatch):
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(k) or kernel(*a)
    )
    attention(*qkv, lengths=[7, 7, 7])
    assert calls == [{}]


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match=r"'flash4'.*Did you mean 'flash"):
        use("flash4")
    assert module.chosen() == ("sdpa", False)


@pytest.mark.parametrize("name", ["flash2", "flash3", "xformers", "sage", "flash", "sageattn"])
def test_a_missing_package_says_how_to_install_it(name, monkeypatch):
    for package in (
        "flash_attn",
        "flash_attn_interface",
        "xformers",
        "xformers.ops",
        "sageattention",
    ):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match="pip install"):
        use(name)


def fake(monkeypatch, package, **functions):
    stand_in = types.ModuleType(package)
    for name, function in functions.items():
        setattr(stand_in, name, function)
    monkeypatch.setitem(sys.modules, package, stand_in)


def test_packages_get_their_own_layout_and_dtype(qkv, monkeypatch):
    seen = []

    def kernel(q, k, v, **options):
        seen.append((q.dtype, options))
        return plain(q.float(), k.float(), v.float()).to(q.dtype)

    fake(monkeypatch, "flash_attn", flash_attn_func=kernel)
    fake(monkeypatch, "flash_attn_interface", flash_attn_func=lambda *a: (kernel(*a), None))
    fake(monkeypatch, "xformers", ops=None)
    fake(monkeypatch, "xformers.ops", memory_efficient_attention=kernel)
    fake(monkeypatch, "sageattention", sageattn=kernel)
    for name in ("flash", "flash3", "xformers", "sage"):
        with use(name), torch.no_grad():
            out = attention(*qkv)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, plain(*qkv), rtol=0.05, atol=0.05)
    assert [s[0] for s in seen] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16]
    assert seen[-1][1] == {"tensor_layout": "NHD"}


def test_sage_is_refused_when_a_gradient_is_needed(qkv, monkeypatch):
    fake(monkeypatch, "sageattention", sageattn=lambda q, k, v, tensor_layout: q)
    q, k, v = qkv
    with use("sage"):
        attention(q, k, v)
        with pytest.raises(ConfigError, match="no gradients"):
            attention(q.requires_grad_(True), k, v)
