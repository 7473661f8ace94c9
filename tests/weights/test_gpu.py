import pytest
import torch
from torch import nn

from musubi.errors import CheckpointError
from musubi.plugin import KeyMap
from musubi.weights import stream_in
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


@pytest.mark.parametrize("chunk", [64, 1000 * 64, None])
@pytest.mark.parametrize("transform", [None, lambda name, tensor: tensor * 3])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_device_gets_what_the_host_gets(
    toy, toy_tensors, write, monkeypatch, chunk, transform, dtype
):
    if chunk is not None:
        monkeypatch.setattr(stream_in, "CHUNK", chunk)
    given = toy_tensors(256, torch.bfloat16)
    theirs = {f"net.{n}": given[n] for n in ("table.weight", "extra", "count")}
    for i, part in enumerate("qkv"):
        theirs[f"net.{part}.weight"] = given["qkv.weight"].chunk(3)[i].to(torch.float8_e4m3fn)
        theirs[f"net.{part}.scale_weight"] = torch.tensor(0.1 * (i + 1))
        theirs[f"net.{part}.bias"] = given["qkv.bias"].chunk(3)[i].clone()
    theirs |= {f"net.ln.{n}": given[f"norm.{n}"] for n in ("weight", "bias")}
    path = write({**theirs, "net.o.weight": given["out.weight"]})
    host = load(toy, path, device="cpu", transform=transform, dtype=dtype)
    device = load(toy, path, device="cuda", transform=transform, dtype=dtype)
    for name, tensor in host.state_dict().items():
        found = device.state_dict()[name]
        assert found.device.type == "cuda"
        assert found.dtype is tensor.dtype
        assert torch.equal(found.cpu(), tensor), name
    assert device.head.weight is device.table.weight
    assert device.positions.device.type == "cuda"


def test_homes_on_the_host_are_filled_straight_and_from_the_device(toy, toy_tensors, write):
    class Homes:
        def __init__(self) -> None:
            self.homes = {
                "qkv.weight": torch.zeros(768, 256, dtype=torch.bfloat16, pin_memory=True),
                "out.weight": torch.zeros(512, 256, dtype=torch.float16, pin_memory=True),
                "norm.weight": torch.zeros(256),
            }

        def prepare(self, module, dtypes):
            pass

        def keeps(self, name):
            return False

        def stores(self, name):
            return name == "out.weight"

        def store(self, name, tensor, scale):
            assert tensor.device.type == "cuda"
            return {name: tensor.half()}

        def home(self, name):
            return self.homes.get(name)

    given = toy_tensors(256, torch.bfloat16)
    placement = Homes()
    module = load(toy, write(given), device="cuda", placement=placement)
    for name, home in placement.homes.items():
        found = module.get_parameter(name)
        assert found.data_ptr() == home.data_ptr()
        assert torch.equal(found, given[name].to(home.dtype))
    assert module.table.weight.device.type == "cuda"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(toy, toy_tensors, write, bad):
    given = toy_tensors(256)
    given["out.weight"][200, 100] = bad
    with pytest.raises(CheckpointError, match=r"'out\.weight' holds"):
        load(toy, write(given), device="cuda")
    given["out.weight"][200, 100] = 1e6
    with pytest.raises(CheckpointError, match=r"'out\.weight' does not fit float16"):
        load(toy, write(given), device="cuda", dtype=torch.float16)
