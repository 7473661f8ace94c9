"""Weights in 8 bits against the arithmetic that defines them, and how far they are from the truth."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from musubi.memory import fp8, quantized
from musubi.plugin import Traits

TRAITS = Traits(quantize=(r"big\..*\.weight", r"odd\.weight"))


class Own(nn.Linear):
    """A layer that computes in a way of its own."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.big = nn.ModuleList([nn.Linear(64, 48), nn.Linear(48, 32, bias=False)])
        self.odd = nn.Linear(20, 12)
        self.small = nn.Linear(8, 8)
        self.own = Own(16, 16)


def layer(
    *, quantized_matmul: bool, bias: bool = True, wide: int = 96
) -> tuple[nn.Linear, quantized.Linear8]:
    torch.manual_seed(0)
    plain = nn.Linear(64, wide, bias=bias)
    net = nn.Module()
    net.layer = nn.Linear(64, wide, bias=bias)
    net.layer.load_state_dict(plain.state_dict())
    quantized.convert(net, Traits(quantize=("layer.weight",)), quantized_matmul=quantized_matmul)
    weight, scale = quantized.quantized(plain.weight.detach())
    net.layer.weight = nn.Parameter(weight, requires_grad=False)
    net.layer.scale_weight.copy_(scale)
    return plain, net.layer


def test_only_named_plain_layers_are_converted_and_names_stay() -> None:
    net = Net()
    before = list(net.state_dict())
    names = quantized.convert(
        net, Traits(quantize=(*TRAITS.quantize, r"own\.weight")), quantized_matmul=True
    )
    assert names == ["big.0.weight", "big.1.weight", "odd.weight"]
    assert [n for n in net.state_dict() if not n.endswith("scale_weight")] == before
    assert net.big[0].weight.dtype == fp8.E4M3
    assert net.small.weight.dtype == net.own.weight.dtype == torch.float32
    # 20 and 12 are no lengths for the units: this one is expanded for its products.
    assert net.big[0].quantized_matmul and not net.odd.quantized_matmul
    assert isinstance(net.big[0], nn.Linear), "a LoRA looks for linear layers"


def test_each_row_uses_the_whole_range() -> None:
    weight = torch.randn(6, 50) * torch.logspace(-6, 3, 6)[:, None]
    stored, scale = quantized.quantized(weight)
    assert (stored.float().abs().amax(1) == fp8.LARGEST).all()
    # Three bits of mantissa: half a step of 1/8, whatever the size of the row.
    error = (quantized.expanded(stored, scale, torch.float32) - weight).abs()
    assert (error.amax(1) <= weight.abs().amax(1) / 16 * 1.001).all()
    relative = error.norm() / weight.norm()
    assert 0.01 < relative < 0.03


def test_a_row_of_zeros_stays_zero_and_a_plain_cast_is_cut_off() -> None:
    stored, scale = quantized.quantized(torch.zeros(2, 16))
    assert not quantized.expanded(stored, scale, torch.float32).any()
    stored, scale = quantized.quantized(torch.tensor([[1000.0, -1000.0, 0.5]]), "fp8")
    assert stored.float().tolist() == [[448.0, -448.0, 0.5]]
    assert scale.tolist() == [[1.0]]


@pytest.mark.parametrize("bias", [True, False])
def test_expanded_products_are_those_of_the_rounded_weight(bias: bool) -> None:
    plain, layer8 = layer(quantized_matmul=False, bias=bias)
    rounded = quantized.expanded(layer8.weight, layer8.scale_weight, torch.float32)
    x = torch.randn(2, 7, 64, requires_grad=True)
    y = layer8(x)
    assert torch.equal(y, F.linear(x, rounded, plain.bias))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(F.linear(x, rounded, plain.bias).square().sum(), x)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_products_in_8_bits_are_near_the_full_ones_both_ways() -> None:
    plain, layer8 = layer(quantized_matmul=True)
    x = torch.randn(4, 33, 64, requires_grad=True)
    way = torch.randn(4, 33, 96)
    y, exact = layer8(x), plain(x)
    (gradient,) = torch.autograd.grad((y * way).sum(), x)
    (expected,) = torch.autograd.grad((exact * way).sum(), x)
    # Two factors, each off by about 2.6%, of random sign: 3.7% of a random product.
    assert 0.01 < (y - exact).norm() / exact.norm() < 0.05
    assert 0.01 < (gradient - expected).norm() / expected.norm() < 0.05
    # Tokens are scaled one by one: a loud one does not drown a quiet one.
    loud = x.detach().clone()
    loud[0, 0] *= 1e4
    assert torch.equal(layer8(loud)[1:], y[1:])


def test_products_multiply_exactly_what_is_stored() -> None:
    _, layer8 = layer(quantized_matmul=True, bias=False)
    x = torch.randn(5, 64)
    scale = x.abs().amax(1, keepdim=True) / fp8.LARGEST
    rows = (x / scale).to(fp8.E4M3).double() * scale.double()
    weight = layer8.weight.double() * layer8.scale_weight.double()
    assert torch.allclose(layer8(x).double(), rows @ weight.T, rtol=1e-5, atol=1e-5)


def test_autocast_decides_the_dtype() -> None:
    _, layer8 = layer(quantized_matmul=False)
    x = torch.randn(3, 64)
    assert layer8(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer8(x).dtype == torch.bfloat16


def test_a_processor_multiplies_no_8_bits() -> None:
    assert not fp8.multiplies(torch.device("cpu"))
