"""Norms, linear layers, rotary tables, causal convolution and tiles."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from musubi.nn import norm, rope
from musubi.nn.causal_conv import CausalConv3d, Stream
from musubi.nn.linear import PatchEmbedding, PreciseLinear
from musubi.nn.norm import LayerNorm, RMSNorm, modulated
from musubi.nn.tiling import starts, tiled, windowed

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", [RMSNorm(32), LayerNorm(32, eps=1e-6)])
def test_norms_compute_in_float32_and_keep_the_dtype(layer, dtype):
    x = (torch.randn(2, 5, 32) * 30).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(32) + 0.5)
        found = layer(x)
        wide = x.double()
        if isinstance(layer, LayerNorm):
            wide = wide - wide.mean(-1, keepdim=True)
        expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))


def test_modulation_is_float32():
    x = torch.randn(2, 3, 8).bfloat16()
    shift, scale = torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    found = modulated(x, shift, scale)
    assert found.dtype == torch.float32
    expected = F.layer_norm(x.float(), (8,), eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_precise_linear_is_float32_whatever_surrounds_it(autocast):
    layer = PreciseLinear(64, 8).bfloat16()
    x = torch.randn(3, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = layer(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, F.linear(x, layer.weight.float(), layer.bias.float()))


def test_patches_equal_the_convolution():
    layer = PatchEmbedding(4, 16, (1, 2, 2))
    x = torch.randn(2, 4, 3, 6, 8)
    expected = nn.Conv3d.forward(layer, x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected)


def test_rotation_turns_pairs_by_position_times_frequency():
    cos, sin = rope.table([[0, 3], [0, 1, 2]], [4, 2], theta=100.0, device=torch.device("cpu"))
    assert cos.shape == sin.shape == (6, 3)
    # frames 0 and 3, columns 0..2; the frequencies are 1 and 1/10 in time, 1 across
    angles = torch.tensor([[t, t / 10, w] for t in (0.0, 3.0) for w in (0.0, 1.0, 2.0)])
    torch.testing.assert_close(cos, angles.cos())
    x = torch.randn(2, 6, 1, 6)
    found = rope.rotate(x, cos, sin)
    as_complex = torch.view_as_complex(x.unflatten(-1, (3, 2)).contiguous())
    turned = as_complex * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(found, torch.view_as_real(turned).flatten(-2))


def test_tables_are_made_once_a_size_and_not_all_are_kept():
    tables, cpu = rope.Tables([4, 2], theta=100.0), torch.device("cpu")
    first = tables(([0, 3], range(3)), cpu)
    again = tables((range(0, 6, 3), [0, 1, 2]), cpu)
    assert first[0] is again[0]
    expected = rope.table([[0, 3], [0, 1, 2]], [4, 2], theta=100.0, device=cpu)
    assert all(torch.equal(*pair) for pair in zip(first, expected, strict=True))
    for frames in range(1, 20):
        assert len(tables(([*range(frames)], [0]), cpu)[0]) == frames
    assert len(tables) == rope.KEPT


def test_attention_sees_differences_of_positions():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(a, b):
        turn = [rope.table([[p]], [8], theta=1e4, device=torch.device("cpu")) for p in (a, b)]
        return (rope.rotate(q, *turn[0]) * rope.rotate(k, *turn[1])).sum()

    torch.testing.assert_close(score(2, 5), score(102, 105))


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("chunks", [[1, 4, 4], [9], [1] * 9, [3, 1, 5]])
def test_chunks_convolve_as_the_whole(chunks, on_host):
    layer = CausalConv3d(2, 3, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 2, 9, 5, 4)
    whole = layer(x)
    assert whole.shape == (2, 3, 9, 5, 4)
    stream = Stream(on_host=on_host)
    parts = [layer(part, stream) for part in x.split(chunks, dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole)


def test_causal_means_causal():
    layer = CausalConv3d(2, 3, (3, 1, 1)).requires_grad_(False)
    x = torch.randn(1, 2, 6, 2, 2)
    other = x.clone()
    other[:, :, 4:] = 0
    assert torch.equal(layer(x)[:, :, :4], layer(other)[:, :, :4])


def test_a_stream_holds_no_more_than_it_needs():
    layer = CausalConv3d(2, 3, 3, padding=1).requires_grad_(False)
    stream = Stream()
    layer(torch.randn(1, 2, 50, 4, 4), stream)
    kept = stream.recall(layer, torch.empty(0))
    assert kept is not None
    assert kept.untyped_storage().nbytes() == 2 * 2 * 4 * 4 * 4


@pytest.mark.parametrize("size", [(32, 32), (80, 32), (33, 70), (100, 9)])
def test_tiles_of_a_pointwise_network_are_the_whole(size):
    x = torch.randn(1, 2, 3, *size)
    found = tiled(lambda p: 3 * p + 1, x, tile=32, overlap=8, scale=Fraction(1))
    torch.testing.assert_close(found, 3 * x + 1)


def test_tiles_may_scale_either_way():
    x = torch.randn(1, 2, 48, 80)

    def up(p):
        return p.repeat_interleave(8, -1).repeat_interleave(8, -2)

    def down(p):
        return F.avg_pool2d(p, 8)

    torch.testing.assert_close(tiled(up, x, tile=32, overlap=8, scale=Fraction(8)), up(x))
    torch.testing.assert_close(tiled(down, x, tile=32, overlap=8, scale=Fraction(1, 8)), down(x))


def test_seams_are_blended():
    # each tile answers with a constant of its own: the whole must go from one to the next in steps
    values = iter(range(10))
    found = tiled(
        lambda p: torch.full_like(p, next(values)),
        torch.zeros(1, 8, 56),
        tile=32,
        overlap=8,
        scale=Fraction(1),
    )
    row = found[0, 0]
    assert row[0] == 0 and row[-1] == 1
    assert row.diff().max() < 0.2


def test_tiles_end_flush():
    assert starts(80, 32, 8) == [0, 24, 48]
    assert starts(81, 32, 8) == [0, 24, 48, 49]
    assert starts(20, 32, 8) == [0]


@pytest.mark.parametrize(("tile", "overlap"), [(30, 8), (32, 4), (32, 32)])
def test_tiles_that_do_not_fit_the_scale_are_refused(tile, overlap):
    with pytest.raises(ValueError, match="do not fit"):
        tiled(lambda p: p, torch.zeros(1, 64, 64), tile=tile, overlap=overlap, scale=Fraction(1, 8))


@pytest.mark.parametrize("frames", [1, 5, 17, 21, 25, 29, 41, 65])
def test_windows_of_a_local_network_give_the_whole(frames):
    def up(x):  # the first frame stands for itself, the others become four
        return torch.cat([x[:, :1], x[:, 1:].repeat_interleave(4, 1)], 1)

    def down(x):
        return x[:, ::4]

    x = torch.randn(3, frames, 2, 2)
    found = windowed(down, x, window=16, overlap=4, scale=Fraction(1, 4))
    torch.testing.assert_close(found, down(x))
    z = down(x)
    torch.testing.assert_close(windowed(up, z, window=4, overlap=1, scale=Fraction(4)), up(z))


def test_windows_never_hold_more_than_was_asked_for():
    seen = []

    def look(x):
        seen.append(x.shape[1])
        return x

    windowed(look, torch.zeros(1, 100, 1, 1), window=16, overlap=4, scale=Fraction(1))
    assert max(seen) == 17 and len(seen) == 8


def test_windows_are_blended_from_the_earlier_to_the_later():
    count = iter(range(9))
    x = torch.zeros(1, 1 + 16 + 12, 1, 1)
    found = windowed(lambda p: p + next(count), x, window=16, overlap=4, scale=Fraction(1))
    assert found[0, :13, 0, 0].tolist() == [0] * 13
    assert found[0, 13:18, 0, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(("window", "overlap"), [(16, 16), (18, 4), (16, 3)])
def test_windows_that_do_not_fit_are_refused(window, overlap):
    with pytest.raises(ValueError, match="do not fit"):
        windowed(
            lambda p: p,
            torch.zeros(1, 64, 1, 1),
            window=window,
            overlap=overlap,
            scale=Fraction(1, 4),
        )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_what_takes_fewer_operations_gives_the_same_numbers(half, device) -> None:
    """Rounded once, from sums in another order: a number in a thousand is its neighbour."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 1, 40, 256, device=device).to(half).requires_grad_()
    shift, scale, gate = torch.randn(3, 1, 1, 256, device=device)
    root, mean = norm.RMSNorm(256).to(device), norm.LayerNorm(256).to(device)
    for one in (root, mean):
        one.requires_grad_(False).weight.copy_(torch.randn(256).to(half).float())
    cos, sin = torch.randn(2, 40, 64, device=device)
    acts = {
        "root": lambda: root(x),
        "mean": lambda: mean(x),
        "modulated": lambda: norm.modulated(x, shift, scale, dtype=half),
        "gated": lambda: norm.gated(x, y, gate),
        "rotate": lambda: rope.rotate(x.unflatten(2, (2, 128)), cos, sin),
    }

    def found() -> dict[str, list[torch.Tensor]]:
        made = {}
        for name, act in acts.items():
            torch.manual_seed(1)
            out = act()
            given = torch.autograd.grad(out, (x, y), torch.randn_like(out), allow_unused=True)
            made[name] = [out.detach(), *(g for g in given if g is not None)]
        return made

    plain = found()
    for one in (root, mean):
        one.placed()
        assert half in one._exact
    again = found()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        written_out = found()
    for name in acts:
        for a, b, c in zip(plain[name], again[name], written_out[name], strict=True):
            assert a.dtype is b.dtype is half
            for fast in (a, b):
                assert float((fast != c).float().mean()) < 0.01, name
                off = (fast.double() - c.double()).norm() / c.double().norm()
                assert off < 1e-3, name


def test_weights_that_do_not_fit_16_bits_stay_in_float32() -> None:
    one = norm.RMSNorm(64).requires_grad_(False)
    one.weight.copy_(torch.rand(64))
    one.placed()
    assert one._exact == ()
    x = torch.randn(2, 64).bfloat16()
    exact = F.rms_norm(x.float(), (64,), one.weight, 1e-6).bfloat16()
    assert torch.equal(one(x), exact)
