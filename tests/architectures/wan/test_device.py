"""Wan's denoiser on a CUDA device: the CPU's answers, half precision."""

import pytest
import torch

from musubi.architectures.wan import ARCHITECTURE
from musubi.testing.twins import build_twin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def error(found, expected):
    return ((found.cpu().float() - expected).norm() / expected.norm()).item()


def test_the_denoiser_agrees_with_the_cpu():
    module = build_twin(ARCHITECTURE.dit)
    x, t, words = torch.randn(2, 16, 3, 8, 8), torch.tensor([0.9, 0.3]), torch.randn(2, 20, 32)
    expected = module(x, t, words)
    module.to("cuda")
    given = (x.cuda(), t.cuda(), words.cuda())
    assert error(module(*given), expected) < 1e-5
    module.bfloat16()
    plain = module(*given)
    assert error(plain, expected) < 0.03
    with torch.autocast("cuda", torch.bfloat16):
        assert error(module(*given), expected) < 0.03


@pytest.mark.filterwarnings("default")  # the compiler's own
def test_a_compiled_block_agrees():
    block = build_twin(ARCHITECTURE.dit).blocks[0].cuda()
    x, e = torch.randn(2, 64, 128).cuda(), torch.randn(2, 6, 128).cuda()
    words, angles = torch.randn(2, 512, 128).cuda(), torch.rand(64, 64).cuda()
    arguments = (x, e, words, angles.cos(), angles.sin())
    compiled = torch.compile(block, fullgraph=True)
    assert error(compiled(*arguments), block(*arguments).cpu()) < 1e-5
