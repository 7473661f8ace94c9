"""Our optimizers against the packages of their authors, and the states of any optimizer as they are read."""

import itertools

import pytest
import torch

from musubi.train.optimizers.came import CAME
from musubi.train.optimizers.four_bit import SIGNED, UNSIGNED, AdamW4bit, dequantize, quantize
from musubi.train.optimizers.lion import Lion
from musubi.train.optimizers.muon import Muon

SHAPES = ((24, 8), (5,), (4, 3, 2, 2))


def walked(kind, shapes=SHAPES, steps=12, dtype=torch.float32, **arguments):
    """The weights after some steps towards a target, with noise."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    targets = [torch.randn(shape) for shape in shapes]
    optimizer = kind(weights, **{"lr": 1e-2, **arguments})
    for _ in range(steps):
        for p, target in zip(weights, targets, strict=True):
            p.grad = (p.detach() - target + 0.1 * torch.randn(p.shape)).to(dtype)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in weights])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lion_is_that_of_its_package(decay):
    theirs = pytest.importorskip("lion_pytorch").Lion
    one, other = (walked(kind, weight_decay=decay) for kind in (Lion, theirs))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_came_is_that_of_its_package(decay):
    theirs = pytest.importorskip("came_pytorch").CAME
    one, other = (walked(kind, weight_decay=decay) for kind in (CAME, theirs))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has none before 2.9")
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_for_matrices(adjust, nesterov):
    given = {"adjust_lr_fn": adjust, "nesterov": nesterov, "weight_decay": 0.1}
    shapes = ((24, 8), (6, 30))
    one, other = (walked(kind, shapes, **given) for kind in (Muon, torch.optim.Muon))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_muon_is_adamw_for_vectors():
    one, other = (
        walked(kind, ((5,), (9,)), weight_decay=0.1) for kind in (Muon, torch.optim.AdamW)
    )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_4_bit_adamw_is_adamw_for_small_tensors():
    one, other = (walked(kind, weight_decay=0.1) for kind in (AdamW4bit, torch.optim.AdamW))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_4_bit_adamw_goes_where_adamw_goes():
    shapes = ((50, 100), (4099,))
    one, other, start = (
        walked(kind, shapes, steps)
        for kind, steps in ((AdamW4bit, 40), (torch.optim.AdamW, 40), (AdamW4bit, 0))
    )
    along = torch.nn.functional.cosine_similarity(one - start, other - start, dim=0)
    assert along > 0.9


@pytest.mark.parametrize("levels", [SIGNED, UNSIGNED])
def test_four_bits_keep_their_own_levels_and_lose_at_most_half_a_gap(levels):
    torch.manual_seed(0)
    exact = torch.tensor(levels)[torch.randint(16, (3, 128))] * torch.tensor([[2.0], [0.5], [1e-9]])
    exact[:, 0] = torch.tensor([2.0, 0.5, 1e-9])
    assert torch.equal(dequantize(quantize(exact, levels), levels, exact.shape), exact)
    values = torch.randn(1001) if levels is SIGNED else torch.rand(1001)
    stored = quantize(values, levels)
    assert stored["codes"].dtype == torch.uint8 and stored["codes"].numel() == 512
    gap = max(b - a for a, b in itertools.pairwise(levels))
    lost = (dequantize(stored, levels, values.shape) - values).abs().max()
    assert lost <= max(gap / 2, 1 / 16) * values.abs().max() * 1.0001
    zeros = torch.zeros(300)
    assert dequantize(quantize(zeros, SIGNED), SIGNED, zeros.shape).abs().max() == 0


@pytest.mark.parametrize("kind", [Lion, CAME, Muon, AdamW4bit])
def test_numbers_out_of_range_are_refused(kind):
    p = [torch.nn.Parameter(torch.zeros(2, 2))]
    for wrong in (
        {"lr": -1.0},
        {"weight_decay": -0.1},
        {"betas": (1.0, 0.9, 0.9)[: 3 if kind is CAME else 2]},
    ):
        with pytest.raises(ValueError, match="must be"):
            kind(p, **wrong)


@pytest.mark.parametrize("kind", [Lion, CAME, Muon, AdamW4bit])
def test_half_weights_are_rounded_once_a_step(kind):
    exact, half = (walked(kind, steps=1, dtype=t) for t in (torch.float32, torch.bfloat16))
    start = walked(kind, steps=0)
    assert (half.float() - exact).abs().max() < 0.03
    assert not torch.equal(half.float(), start.bfloat16().float())
