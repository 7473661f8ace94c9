"""The files in `world/`: there, small, and loaded by the code that loads any checkpoint."""

import shutil

import make
import pytest
import torch

from musubi.demo import released
from musubi.errors import CheckpointError
from musubi.weights.load import load


def test_everything_together_is_small():
    files = [p for p in released.HOME.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 16e6


@pytest.mark.parametrize(
    ("name", "numbers"), [("dit", make.DIT), ("vae", make.VAE), ("t5", make.TEXT)]
)
def test_every_network_loads_and_has_the_sizes_that_made_it(name, numbers):
    world = released.read()
    component = world.architecture.component(name)
    module = load(component, world.path(name), device=torch.device("cpu"), dtype=torch.float32)
    found = module.musubi_numbers
    assert {key: found[key] for key in numbers if key in found} == {
        key: value for key, value in numbers.items() if key in found
    }
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_missing_file_is_named(tmp_path):
    shutil.copytree(released.HOME, tmp_path / "world")
    (tmp_path / "world" / "vae.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"vae\.safetensors"):
        released.read(tmp_path / "world")


def test_flags_give_each_command_what_it_takes(tmp_path):
    world = released.read()
    assert "--vae" in world.flags("cache latents") and "--dit" not in world.flags("cache latents")
    assert "--t5" in world.flags("cache text") and "--vae" not in world.flags("cache text")
    assert {"--dit", "--vae", "--t5", "--task"} <= set(world.flags("generate"))
    assert world.copy(tmp_path / "copy").path("dit").parent == tmp_path / "copy"
