"""HunyuanVideo's autoencoder on a CUDA device: the CPU's answers, half precision."""

import pytest
import torch

from musubi.encoders.hunyuan_vae.component import VAE
from musubi.encoders.hunyuan_vae.network import Pieces
from musubi.testing.twins import build_twin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # the compiler recommends what these tests must not have
    pytest.mark.filterwarnings("ignore:TensorFloat32"),
]


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def error(found, expected):
    return ((found.cpu().float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("pieces", [Pieces(), Pieces(tile=64), Pieces(columns=8)])
def test_the_autoencoder_agrees_with_the_cpu(pieces):
    vae = build_twin(VAE)
    x = torch.rand(1, 3, 9, 64, 96) * 2 - 1
    z = vae.encode(x, pieces=pieces)
    frames = vae.decode(z, pieces=pieces)
    vae.cuda()
    assert error(vae.encode(x.cuda(), pieces=pieces), z) < 1e-4
    assert error(vae.decode(z.cuda(), pieces=pieces), frames) < 1e-4
    vae.half()
    assert error(vae.decode(z.cuda(), pieces=pieces), frames) < 0.03
