"""MagCache: which steps it leaves out, and that a left-out step adds what was added before."""

import itertools

import pytest
import torch
from torch import nn

from musubi.errors import ConfigError
from musubi.flow.step_cache import MagCache, StepCache, nearest, skipped


class Pair(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n = n
        self.ran = 0

    def forward(self, img, txt, vec):
        self.ran += 1
        return img * (1 + self.n) + txt.mean() + vec, txt + 1


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.ran = 0

    def forward(self, x, vec):
        self.ran += 1
        return x + vec * x.mean()


class Network(nn.Module):
    """Blocks in two stacks, video first, as denoisers have them."""

    def __init__(self, single=True):
        super().__init__()
        self.pairs = nn.ModuleList([Pair(0.25), Pair(0.5)])
        self.joint = nn.ModuleList([One(), One()] if single else [])

    def forward(self, img, txt, vec):
        for block in self.pairs:
            img, txt = block(img, txt, vec)
        x = torch.cat([img, txt], 1)
        for block in self.joint:
            x = block(x, vec)
        return x[:, : img.shape[1]] * 2 + vec

    def blocks_run(self):
        return sum(b.ran for b in [*self.pairs, *self.joint])


def tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)


STACKS = ("pairs", "joint")


def test_which_steps_are_left_out():
    # Growth of 10 % a step: errors of 0.1, 0.1 + 0.21, … add up; with 0.2 one step is left out.
    policy = MagCache(ratios=(1.0,) + (1.1,) * 9, retention=0.2, threshold=0.2, k=9)
    #                          0      1      2     3      4     5      6     7      8     9
    assert skipped(policy, 10) == (
        False, False, True, False, True, False, True, False, True, False,
    )  # fmt: skip
    # Nothing changes: only k ends a row, and the last step always runs.
    still = MagCache(ratios=(1.0,) * 10, retention=0.0, threshold=0.0, k=3)
    assert skipped(still, 10) == (
        False, True, True, True, False, True, True, True, False, False,
    )  # fmt: skip
    assert not any(skipped(MagCache(ratios=(1.0,), retention=1.0), 10))
    assert skipped(still, 1) == (False,)


def test_ratios_for_other_numbers_of_steps():
    ratios = [float(i) for i in range(50)]
    assert nearest(ratios, 50) == tuple(ratios)
    # 49 / 24 apart, to the nearest even where in the middle, as NumPy rounds.
    assert nearest(ratios, 25)[:4] == (0.0, 2.0, 4.0, 6.0)
    assert nearest(ratios, 25)[-1] == 49.0
    assert nearest(ratios, 1) == (49.0,)


@pytest.mark.parametrize(
    "wrong", [{"ratios": ()}, {"retention": 1.5}, {"threshold": -1.0}, {"k": -1}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError):
        MagCache(**{"ratios": (1.0,), **wrong})


@pytest.mark.parametrize("single", [True, False])
def test_a_left_out_step_adds_the_residual_again(single):
    network = Network(single=single)
    cache = StepCache(network, STACKS, (False, True, False))
    (img, txt), (other, words) = tokens(1), tokens(2)
    vec = torch.tensor(0.5)
    first = cache.run("positive", 0, lambda: network(img, txt, vec))
    assert torch.equal(first, network(img, txt, vec))
    residual = (first - vec) / 2 - img
    count = network.blocks_run()
    found = cache.run("positive", 1, lambda: network(other, words, vec))
    assert network.blocks_run() == count
    torch.testing.assert_close(found, (other + residual) * 2 + vec)
    # And afterwards everything is as it was.
    assert torch.equal(
        cache.run("positive", 2, lambda: network(other, words, vec)), network(other, words, vec)
    )


def test_each_call_of_guidance_has_a_residual_of_its_own():
    network = Network()
    cache = StepCache(network, STACKS, (False, True))
    img, txt = tokens(1)
    vec = torch.tensor(0.5)
    positive = cache.run("positive", 0, lambda: network(img, txt, vec))
    negative = cache.run("negative", 0, lambda: network(img, txt - 3, vec))
    again = [
        cache.run("positive", 1, lambda: network(img, txt, vec)),
        cache.run("negative", 1, lambda: network(img, txt - 3, vec)),
    ]
    torch.testing.assert_close(again[0], positive)
    torch.testing.assert_close(again[1], negative)
    assert not torch.allclose(positive, negative)


def test_another_run_of_the_solver_starts_anew():
    network = Network()
    cache = StepCache(network, STACKS, (True, True))
    img, txt = tokens(1)
    cache.run("positive", 0, lambda: network(img, txt, torch.tensor(0.5)))
    count = network.blocks_run()
    cache.start()
    cache.run("positive", 1, lambda: network(img, txt, torch.tensor(0.5)))
    assert network.blocks_run() == count + 4


def test_a_failed_call_leaves_the_network_whole():
    network = Network()
    cache = StepCache(network, STACKS, (False, True))
    img, txt = tokens(1)
    cache.run("positive", 0, lambda: network(img, txt, torch.tensor(0.5)))
    with pytest.raises(RuntimeError):
        cache.run("positive", 1, lambda: network(img[..., :1], txt, torch.ones(7)))
    assert len(network.pairs) == len(network.joint) == 2


def test_calibration_measures_the_growth_of_the_residual():
    network = Network()
    cache = StepCache(network, STACKS, measuring=True)
    img, txt = tokens(1)
    outs = [
        cache.run("positive", i, lambda s=s: network(img, txt, torch.tensor(s)))
        for i, s in enumerate((0.5, 0.25, 0.75))
    ]
    residuals = [(o - s) / 2 - img for o, s in zip(outs, (0.5, 0.25, 0.75), strict=True)]
    expected = [
        (b.norm(dim=-1) / a.norm(dim=-1)).mean().item() for a, b in itertools.pairwise(residuals)
    ]
    assert cache.ratios() == pytest.approx((1.0, *expected), rel=1e-4)
