"""Wan's autoencoder on a CUDA device: its cache on the host."""

import pytest
import torch

from musubi.encoders.wan_vae.component import VAE
from musubi.testing.twins import build_twin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_on_the_host_changes_nothing(dtype):
    vae = build_twin(VAE).to("cuda", dtype)
    x = torch.rand(1, 3, 13, 64, 96).cuda() * 2 - 1
    z = vae.encode(x)
    assert torch.equal(z, vae.encode(x, cache_on_host=True))
    assert torch.equal(vae.decode(z), vae.decode(z, cache_on_host=True))
