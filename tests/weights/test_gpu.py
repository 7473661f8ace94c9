import pytest
import torch
from torch import nn

from musubi.spec import KeyMap
from musubi.weights.load import load
from musubi.weights.write import save

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WIDTH, DEPTH = 2048, 12


class Tower(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(DEPTH))


def test_loading_takes_the_model_and_a_few_tensors(make_component, tmp_path):
    path = tmp_path / "x.safetensors"
    weights = {
        f"layers.{i}.weight": torch.randn(WIDTH, WIDTH).to(torch.float8_e4m3fn)
        for i in range(DEPTH)
    }
    save(path, weights)
    component = make_component(
        build=Tower,
        infer=lambda shapes: {"width": shapes["layers.0.weight"][0]},
        dialects=(KeyMap(name="own", marker=("layers.0.weight",)),),
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    module = load(component, path, device="cuda", transform=lambda name, tensor: tensor * 2)
    model = torch.cuda.memory_allocated() - before
    peak = torch.cuda.max_memory_allocated() - before
    assert model == DEPTH * WIDTH * WIDTH * 2
    # In float32, before and after the transform, and some change.
    assert peak - model <= WIDTH * WIDTH * 4 * 2 + 2**20
    for i, layer in enumerate(module.layers):
        assert layer.weight.device.type == "cuda"
        assert torch.equal(layer.weight.cpu().float(), weights[f"layers.{i}.weight"].float() * 2)
