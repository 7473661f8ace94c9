import gc
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from musubi.errors import ConfigError
from musubi.plugin import Architecture, Quiet, Tokenizer
from musubi.weights import nets as room
from musubi.weights.nets import Nets

CPU = torch.device("cpu")


@pytest.fixture
def architecture(make_component):
    """As much of an architecture as `Nets` looks at."""
    parts = (
        make_component(),
        make_component(name="vae", role="vae", dtype="bfloat16"),
        make_component(name="text", role="text", tokenizer=Tokenizer(repo="o/n")),
    )

    def component(name):
        found = [c for c in parts if c.name == name]
        if not found:
            raise KeyError(name)
        return found[0]

    made = SimpleNamespace(title="Toy", components=parts, component=component)
    made.path_of = partial(Architecture.path_of, made)
    return made


def test_a_network_is_loaded_on_first_use_and_kept(architecture, toy_tensors, write):
    path = write(toy_tensors())
    report = Quiet()
    nets = Nets(architecture, {"dit": path, "vae": path}, device=CPU, report=report)
    assert nets.loaded == ()
    assert "dit" in nets
    assert "text" not in nets
    assert nets["dit"] is nets["dit"]
    assert nets["vae"].qkv.weight.dtype is torch.bfloat16
    assert nets.loaded == ("dit", "vae")
    assert report.notes == [f"Loading the dit from {path}.", f"Loading the vae from {path}."]


def test_dtypes_and_transforms_reach_the_loader(architecture, toy_tensors, write):
    path = write(toy_tensors())
    nets = Nets(
        architecture,
        {"dit": path},
        device=CPU,
        dtypes={"dit": torch.float64},
        transforms={"dit": lambda name, tensor: tensor * 0},
    )
    assert nets["dit"].qkv.weight.dtype is torch.float64
    assert not nets["dit"].qkv.weight.any()


def test_freed_networks_leave_memory_and_come_back(architecture, toy_tensors, write):
    nets = Nets(architecture, {"dit": write(toy_tensors())}, device=CPU)
    watched = weakref.ref(nets["dit"])
    nets.free("dit")
    nets.free("dit")
    gc.collect()
    assert watched() is None
    assert nets.loaded == ()
    assert nets["dit"] is not None
    nets.free_all()
    assert nets.loaded == ()


def test_a_module_that_was_made_elsewhere_is_used(architecture):
    nets = Nets(architecture, {}, device=CPU)
    module = torch.nn.Linear(1, 1)
    nets.put("vae", module)
    assert "vae" in nets
    assert nets["vae"] is module
    with pytest.raises(ConfigError, match="Toy has no network 'clip'"):
        nets.put("clip", module)


def test_a_network_without_a_file_names_its_flag(architecture):
    nets = Nets(architecture, {}, device=CPU)
    with pytest.raises(ConfigError, match=r"The vae of Toy is needed.*Give --vae PATH"):
        nets["vae"]
    with pytest.raises(ConfigError, match=r"no network 'clip'.*dit, vae, text"):
        nets["clip"]


def test_a_tokenizer_is_found_once_and_stays(architecture, tmp_path, monkeypatch):
    asked = []

    def find(component, explicit, weights):
        asked.append((component.name, explicit, weights))
        return object()

    monkeypatch.setattr(room, "load_tokenizer", find)
    given = {"text": tmp_path / "tok"}
    nets = Nets(architecture, {"text": tmp_path / "t.pth"}, device=CPU, tokenizers=given)
    first = nets.tokenizer("text")
    nets.free_all()
    assert nets.tokenizer("text") is first
    assert asked == [("text", tmp_path / "tok", tmp_path / "t.pth")]
