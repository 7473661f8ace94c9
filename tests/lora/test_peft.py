"""Adapters that peft made and saved: read with the strength that its own configuration says."""

import copy
import warnings

import pytest
import torch
from torch import nn

from musubi.errors import CheckpointError
from musubi.lora.adapter import Adapter, Adapters
from musubi.lora.delta import Pair
from musubi.lora.files import read_lora
from musubi.lora.fresh import Kind
from musubi.lora.kinds import Decomposed
from musubi.lora.merge import merging_transform
from musubi.lora.peft_folder import write_peft
from musubi.plugin import LoraTargets

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
peft = pytest.importorskip("peft")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.ffn = nn.Linear(8, 8), nn.Linear(8, 12)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block.q(x))
        return self.blocks[0].ffn(x) + self.blocks[1].ffn(x)


class Arch:
    name, title, variants = "net", "Net", ()

    class dit:  # noqa: N801
        dialects, tiny = (), None
        traits = type("T", (), {"stacks": (), "lora": None})


TARGETS = ["q", "ffn"]
CONFIGS = {
    "plain": lambda: peft.LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS),
    "rank stabilized": lambda: peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=TARGETS
    ),
    "patterns": lambda: peft.LoraConfig(
        r=2,
        lora_alpha=2,
        rank_pattern={"ffn": 3, "blocks.0.q": 1},
        alpha_pattern={"blocks.1.ffn": 9, r"blocks\.\d\.q": 5},
        target_modules=TARGETS,
    ),
    "dora": lambda: peft.LoraConfig(r=2, lora_alpha=6, use_dora=True, target_modules=TARGETS),
    "bias": lambda: peft.LoraConfig(r=2, lora_alpha=6, lora_bias=True, target_modules=TARGETS),
    "loha": lambda: peft.LoHaConfig(r=2, alpha=6, target_modules=TARGETS),
    "lokr": lambda: peft.LoKrConfig(r=1, alpha=3, target_modules=TARGETS),
    "lokr, whole": lambda: peft.LoKrConfig(r=8, alpha=4, target_modules=TARGETS),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, r=0, target_modules=TARGETS),
    "oft, exact": lambda: peft.OFTConfig(
        oft_block_size=4, r=0, use_cayley_neumann=False, target_modules=TARGETS
    ),
    "oft, three terms": lambda: peft.OFTConfig(
        oft_block_size=4, r=0, num_cayley_neumann_terms=3, target_modules=TARGETS
    ),
    "oft, shared": lambda: peft.OFTConfig(
        oft_block_size=4, r=0, block_share=True, target_modules=TARGETS
    ),
}


def wrapped(config):
    torch.manual_seed(0)
    base = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(base), config)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return base, theirs.eval()


@pytest.fixture(params=CONFIGS)
def case(request, tmp_path):
    base, theirs = wrapped(CONFIGS[request.param]())
    theirs.save_pretrained(str(tmp_path / "adapter"))
    return base, theirs, tmp_path / "adapter"


def shapes(net):
    return {n: tuple(p.shape) for n, p in net.named_parameters()}


@pytest.mark.parametrize("what", ["folder", "file"])
@torch.no_grad()
def test_merged_and_beside_the_layers(case, what):
    base, theirs, folder = case
    path = folder if what == "folder" else folder / "adapter_model.safetensors"
    file = read_lora(path, Arch, shapes(base))
    assert not file.unknown and not file.notes
    x = torch.randn(5, 8)
    expected = theirs(x)
    made = Adapters.from_deltas(base, file.deltas)
    made.attach()
    torch.testing.assert_close(base(x), expected, atol=1e-5, rtol=1e-5)
    made.detach()
    merging = merging_transform([(file, 1.0)])
    for name, parameter in base.named_parameters():
        parameter.copy_(merging(name, parameter.clone()))
    torch.testing.assert_close(base(x), expected, atol=1e-5, rtol=1e-5)


def test_without_its_configuration_it_is_said(case):
    base, _, folder = case
    (folder / "adapter_config.json").unlink()
    file = read_lora(folder, Arch, shapes(base))
    assert "no adapter_config.json" in file.notes[0]


def test_a_configuration_that_is_no_json(case):
    *_, folder = case
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config.json cannot be read"):
        read_lora(folder, Arch)


def test_gradients_of_a_dora():
    base, theirs = wrapped(CONFIGS["dora"]())
    layer, wrapped_layer = base.blocks[0].q, theirs.base_model.model.blocks[0].q
    inner = Pair(
        wrapped_layer.lora_A["default"].weight, wrapped_layer.lora_B["default"].weight, 6.0
    )
    adapter = Adapter(Decomposed(inner, wrapped_layer.lora_magnitude_vector["default"].weight))
    layer.requires_grad_(False)
    x = torch.randn(5, 8)
    adapter(layer, x, layer(x)).square().sum().backward()
    wrapped_layer(x).square().sum().backward()
    own = dict(adapter.named_parameters())
    pairs = {
        "down": wrapped_layer.lora_A["default"].weight,
        "up": wrapped_layer.lora_B["default"].weight,
        "magnitude": wrapped_layer.lora_magnitude_vector["default"].weight,
    }
    for name, parameter in pairs.items():
        torch.testing.assert_close(own[name].grad, parameter.grad, atol=1e-5, rtol=1e-5)


def test_pissa_starts_where_peft_does():
    config = peft.LoraConfig(r=3, lora_alpha=6, init_lora_weights="pissa", target_modules=TARGETS)
    torch.manual_seed(0)
    base = Net()
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    made = Adapters.create(
        base,
        LoraTargets(include=(".*",)),
        rank=3,
        alpha=6.0,
        kind=Kind(init="pissa"),
    )
    made.attach()
    x = torch.randn(5, 8)
    torch.testing.assert_close(base(x), theirs(x), atol=1e-5, rtol=1e-5)
    for path, adapter in made.modules_by_path.items():
        pair = theirs.base_model.model.get_submodule(path)
        ours = adapter.up @ adapter.down
        torch.testing.assert_close(
            ours, pair.lora_B["default"].weight @ pair.lora_A["default"].weight
        )
        with torch.no_grad():
            noise = torch.randn_like(adapter.up)
            adapter.up.add_(noise)
            pair.lora_B["default"].weight.copy_(adapter.up)
            pair.lora_A["default"].weight.copy_(adapter.down)
    torch.testing.assert_close(base(x), theirs(x), atol=1e-4, rtol=1e-5)
    merging = dict(made.tensors())
    made.detach()
    with torch.no_grad():
        for name, delta in merging.items():
            assert delta.rank == 6
            base.get_parameter(name).add_(delta.matrix())
        torch.testing.assert_close(base(x), theirs(x), atol=1e-4, rtol=1e-5)


KINDS = {
    "lora": Kind(),
    "dora": Kind(name="dora"),
    "loha": Kind(name="loha"),
    "lokr": Kind(name="lokr"),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_peft_loads_a_folder_that_was_written_here(kind, tmp_path):
    torch.manual_seed(0)
    base = Net()
    ranks = [(r"blocks\.1\..*", 1, 5.0)] if kind in ("lora", "loha") else []
    made = Adapters.create(
        base, LoraTargets(include=(".*",)), rank=2, alpha=3.0, kind=KINDS[kind], ranks=ranks
    )
    for parameter in made.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    write_peft(tmp_path / "adapter", made.tensors(), torch.float32)
    x = torch.randn(5, 8)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter")).eval()
    made.attach()
    torch.testing.assert_close(theirs(x), base(x), atol=1e-5, rtol=1e-5)
    again = read_lora(tmp_path / "adapter", Arch, shapes(base))
    for name, delta in made.tensors().items():
        weight = base.get_parameter(name)
        torch.testing.assert_close(again.deltas[name].change(weight), delta.change(weight))


@torch.no_grad()
def test_what_peft_saved_it_loads_again_after_being_read(case, tmp_path, request):
    base, theirs, folder = case
    file = read_lora(folder, Arch, shapes(base))
    out = tmp_path / "again"
    if request.node.callspec.params["case"] == "bias":
        with pytest.raises(CheckpointError, match="peft has no words"):
            write_peft(out, file.deltas, torch.float32)
        return
    write_peft(out, file.deltas, torch.float32)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(out)).eval()
    x = torch.randn(5, 8)
    torch.testing.assert_close(again(x), theirs(x), atol=1e-5, rtol=1e-5)
