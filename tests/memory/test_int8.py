"""Products in int8 against float64, against fp8, and through every way to make them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from musubi.memory import int8, packed, quantized
from musubi.plugin import Traits

TRAITS = Traits(quantize=("layer.weight",))


def layer(
    storage: str, *, quantized_matmul: bool, wide: int = 192
) -> tuple[nn.Linear, quantized.Linear8]:
    torch.manual_seed(0)
    plain = nn.Linear(256, wide)
    net = nn.Module()
    net.layer = nn.Linear(256, wide)
    net.layer.load_state_dict(plain.state_dict())
    quantized.convert(net, TRAITS, quantized_matmul=quantized_matmul, storage=storage)
    weight, scale = quantized.quantized(plain.weight.detach(), storage)
    net.layer.weight = nn.Parameter(weight, requires_grad=False)
    net.layer.scale_weight.copy_(scale)
    return plain, net.layer


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def test_a_row_is_off_by_half_a_step_of_its_own() -> None:
    x = torch.randn(6, 50) * torch.logspace(-6, 3, 6)[:, None]
    q, scale = int8.rows(x)
    assert q.dtype is torch.int8 and scale.shape == (6, 1)
    assert (q.abs().amax(1) == 127).all()
    assert ((q * scale - x).abs() <= scale * 0.5001).all()
    assert torch.allclose(scale[:, 0], x.abs().amax(1) / 127)


def test_columns_are_multiplied_before() -> None:
    x, factor = torch.randn(5, 40), torch.rand(40) * 10
    q, scale = int8.rows(x, factor=factor)
    expected, of = int8.rows(x * factor)
    assert torch.equal(q, expected) and torch.equal(scale, of)


def test_zeros_stay_zero_and_what_is_not_finite_shows() -> None:
    q, scale = int8.rows(torch.zeros(2, 16))
    assert not q.any() and torch.isfinite(scale).all() and (scale > 0).all()
    _, scale = int8.rows(torch.tensor([[1.0, float("nan")], [1.0, float("inf")]]))
    assert not torch.isfinite(scale).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [None, torch.randn(48)])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_products_are_exact_up_to_the_scales(dtype, bias, count) -> None:
    a = torch.randint(-127, 128, (count, 4096), dtype=torch.int8)
    b = torch.randint(-127, 128, (48, 4096), dtype=torch.int8)
    scale_a, scale_b = torch.rand(count, 1) / 1e4, torch.rand(48, 1)
    exact = (a.double() @ b.double().t()) * scale_a.double() * scale_b.double().t()
    exact = exact if bias is None else exact + bias.to(dtype).double()
    bias = None if bias is None else bias.to(dtype)
    y = int8.product(a, b, scale_a, scale_b, bias, dtype)
    assert y.dtype is dtype
    assert relative(y, exact) < {torch.float32: 1e-6, torch.float16: 5e-4}.get(dtype, 4e-3)


def test_chunks_change_no_bit() -> None:
    x, w = torch.randn(23, 64), torch.randn(16, 64)
    (a, scale_a), (b, scale_b) = int8.rows(x), int8.rows(w)
    for step in (5, 8, 23, 100):
        q, scale = int8._rounded_in_chunks(x, None, step)
        assert torch.equal(q, a) and torch.equal(scale, scale_a)
        for bias in (None, torch.randn(16)):
            whole = int8.product(a, b, scale_a, scale_b, bias, torch.float32)
            parts = int8._multiplied(a, b, scale_a, scale_b, bias, torch.float32, step)
            assert torch.equal(whole, parts)


def test_operators_are_what_compilers_are_told() -> None:
    x, factor = torch.randn(9, 32), torch.rand(32)
    b, scale_b = int8.rows(torch.randn(16, 32))
    a, scale_a = int8.rows(x)
    torch.library.opcheck(torch.ops.musubi.int8_rows, (x, None))
    torch.library.opcheck(torch.ops.musubi.int8_rows, (x, factor))
    for bias in (None, torch.randn(16)):
        words = (a, b, scale_a, scale_b, bias, torch.bfloat16)
        torch.library.opcheck(torch.ops.musubi.int8_product, words)


@pytest.mark.parametrize("quantized_matmul", [False, True])
def test_answers_and_gradients_are_closer_than_in_fp8(quantized_matmul: bool) -> None:
    errors = {}
    for storage in ("int8", "fp8_scaled"):
        plain, stored = layer(storage, quantized_matmul=quantized_matmul)
        x = torch.randn(3, 41, 256, requires_grad=True)
        out = torch.randn(3, 41, 192)
        (expected,) = torch.autograd.grad((plain(x) * out).sum(), x)
        y = stored(x)
        (gradient,) = torch.autograd.grad((y * out).sum(), x)
        errors[storage] = relative(y.detach(), plain(x).detach()), relative(gradient, expected)
    for mine, other in zip(errors["int8"], errors["fp8_scaled"], strict=True):
        assert 0.002 < mine < 0.012
        assert mine < other / 2


def test_products_multiply_exactly_what_is_stored() -> None:
    _, stored = layer("int8", quantized_matmul=True)
    x = torch.randn(5, 256, requires_grad=True)
    q, scale = int8.rows(x.detach())
    weight = stored.weight.double() * stored.scale_weight.double()
    y = stored(x)
    expected = (q.double() * scale.double()) @ weight.T + stored.bias.double()
    assert torch.allclose(y.double(), expected, rtol=1e-5, atol=1e-5)
    g = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, g)
    q, scale = int8.rows(g * stored.scale_weight.t())
    assert torch.allclose(
        gradient.double(), (q.double() * scale.double()) @ stored.weight.double(), atol=1e-5
    )


def test_tokens_are_scaled_one_by_one() -> None:
    _, stored = layer("int8", quantized_matmul=True)
    x = torch.randn(4, 256)
    loud = x.clone()
    loud[0] *= 1e4
    assert torch.equal(stored(loud)[1:], stored(x)[1:])


def test_expanded_products_are_those_of_the_rounded_weight() -> None:
    plain, stored = layer("int8", quantized_matmul=False)
    rounded = quantized.expanded(stored.weight, stored.scale_weight, torch.float32)
    x = torch.randn(2, 7, 256)
    assert torch.equal(stored(x), F.linear(x, rounded, plain.bias))
    assert relative(rounded, plain.weight.detach()) < 0.006


def test_a_processor_is_no_unit_for_integers() -> None:
    assert not quantized.multiplies(torch.device("cpu"), "int8")


needs_cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class TestOnADevice:
    """Kernels and PyTorch's own product against the processor's numbers."""

    pytestmark = needs_cuda

    @pytest.fixture(params=["kernels", "plain"])
    def way(self, request, monkeypatch):
        if request.param == "plain":
            monkeypatch.setattr(int8, "kernels", lambda x: None)
        elif int8.kernels(torch.empty(1, device="cuda")) is None:
            pytest.skip("needs Triton and a chip that it knows")

    @pytest.mark.parametrize("length", [256, 1040])
    @pytest.mark.parametrize("count", [1, 17, 300, 5000])
    def test_products(self, way, count, length) -> None:
        a = torch.randint(-127, 128, (count, length), dtype=torch.int8)
        b = torch.randint(-127, 128, (272, length), dtype=torch.int8)
        scale_a, scale_b, bias = torch.rand(count, 1), torch.rand(272, 1), torch.randn(272)
        for dtype in (torch.float32, torch.bfloat16):
            words = (a, b, scale_a, scale_b, bias.to(dtype))
            expected = int8.product(*words, dtype)
            found = int8.product(*(w.cuda() for w in words), dtype)
            assert found.dtype is dtype
            assert relative(found.cpu(), expected) < (1e-6 if dtype is torch.float32 else 1e-3)

    def test_rows_and_the_transpose(self, way) -> None:
        x, factor = torch.randn(70, 1040), torch.rand(1040)
        for given in (None, factor):
            expected, scale = int8.rows(x, factor=given)
            on_device = None if given is None else given.cuda()
            q, found = int8.rows(x.cuda(), factor=on_device)
            # A division and a product may differ in the last bit, and then a tie falls otherwise.
            assert (q.cpu() != expected).float().mean() < 1e-3
            assert torch.allclose(found.cpu(), scale, rtol=1e-6)
        assert torch.equal(int8.turned(q).cpu(), q.t().contiguous().cpu())

    def test_packed_activations(self, way) -> None:
        flat = (torch.randn(128 * 1000) * 3).bfloat16()
        made = packed.packed(flat.cuda())
        back = packed.unpacked(made, torch.bfloat16).cpu()
        expected = packed.unpacked(packed.packed(flat), torch.bfloat16)
        assert (back != expected).float().mean() < 1e-3
        assert relative(back, flat) < 0.01
