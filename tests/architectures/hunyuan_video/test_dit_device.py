"""HunyuanVideo on a CUDA device: the CPU's answers, half precision, compiled blocks, no waiting."""

import pytest
import torch

from musubi.architectures.hunyuan_video import ARCHITECTURE
from musubi.architectures.hunyuan_video.runtime import HunyuanVideoRuntime
from musubi.testing.twins import build_twin
from musubi.train.step import move

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


def test_the_denoiser_agrees_with_the_cpu():
    module = build_twin(ARCHITECTURE.dit)
    given = {
        "x": torch.randn(2, 16, 3, 8, 8),
        "t": torch.tensor([0.9, 0.3]),
        "text": torch.randn(2, 20, 32),
        "pooled": torch.randn(2, 16),
        "guidance": torch.tensor([6000.0, 1000.0]),
    }
    expected = module(**given, lengths=[20, 7])
    module.to("cuda")
    given = {name: tensor.cuda() for name, tensor in given.items()}
    assert error(module(**given, lengths=[20, 7]), expected) < 1e-4
    module.bfloat16()
    assert error(module(**given, lengths=[20, 7]), expected) < 0.03
    with torch.autocast("cuda", torch.bfloat16):
        assert error(module(**given, lengths=[20, 7]), expected) < 0.03


@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize("lengths", [None, (70, 66)])
def test_compiled_blocks_agree(lengths):
    module = build_twin(ARCHITECTURE.dit).cuda()
    img, txt = torch.randn(2, 64, 128).cuda(), torch.randn(2, 6, 128).cuda()
    vec, angles = torch.randn(2, 128).cuda(), torch.rand(70, 64).cuda()
    cos, sin = angles.cos(), angles.sin()
    double, single = module.double_blocks[0], module.single_blocks[0]
    given = (img, txt, vec, cos[:64], sin[:64], lengths)
    for found, expected in zip(
        torch.compile(double, fullgraph=True)(*given), double(*given), strict=True
    ):
        assert error(found, expected.cpu()) < 1e-5
    given = (torch.cat([img, txt], 1), vec, cos, sin, lengths)
    assert error(torch.compile(single, fullgraph=True)(*given), single(*given).cpu()) < 1e-5


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_waits_for_nothing():
    dit = build_twin(ARCHITECTURE.dit).cuda()
    mask = torch.zeros(2, 256, dtype=torch.int64)
    mask[0, :5], mask[1, :9] = 1, 1
    records = move(
        {
            "latents": torch.randn(2, 16, 3, 8, 8),
            "llm": torch.randn(2, 256, 32),
            "llm_mask": mask,
            "clipL": torch.randn(2, 16),
            "clipL_mask": torch.ones(2, 77, dtype=torch.int64),
        },
        torch.device("cuda"),
    )
    runtime = HunyuanVideoRuntime(ARCHITECTURE, ARCHITECTURE.task("t2v"), {"guidance_scale": 6.0})
    t = torch.tensor([0.9, 0.3]).cuda()

    def step():
        given = runtime.condition(records)
        assert given.latents is not None
        with torch.autocast("cuda", torch.bfloat16):
            return runtime.predict(dit, given.latents, t, given)

    expected = step()  # makes the tables of positions
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        found = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)
