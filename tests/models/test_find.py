"""Model files found by content, and commands that take them by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from musubi import registry
from musubi.cli.line import CommandLine
from musubi.config.commands import typed
from musubi.config.models import FindConfig, model_folders
from musubi.config.options import for_architecture
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError
from musubi.models import find, pick
from musubi.plugin import Quiet
from musubi.testing import twins

WAN = registry.find("wan")


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return twins.write_twins(WAN, tmp_path_factory.mktemp("twin"), task=WAN.task("t2v"))


@pytest.fixture
def models(twin, tmp_path):
    """The twin under other names in folders as ComfyUI and a hub's cache have them, among other files."""
    home = tmp_path / "Comfy UI 猫" / "models"
    places = {"dit": "diffusion_models/x.safetensors", "vae": "vae/y.safetensors",
              "t5": "hub/models--a--b/snapshots/1/z.safetensors"}  # fmt: skip
    for name, place in places.items():
        target = home / place
        target.parent.mkdir(parents=True)
        blob = home / "blobs" / name
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(Path(twin[name]).read_bytes())
        target.symlink_to(blob)
    (home / "loras").mkdir()
    save_file({"lora_unet_blocks_0_ffn_0.lora_down.weight": torch.zeros(64, 64)}, home / "loras" / "l.safetensors")  # fmt: skip
    (home / "loras" / "broken.safetensors").write_bytes(b"x" * 9000)
    (home / "loras" / "code.pth").write_bytes(b"\x80\x04c" + b"x" * 9000)
    (home / "up").symlink_to(home)
    return home


def train(**given: object) -> TrainConfig:
    return for_architecture(TrainConfig, WAN, "train")(**given)


def test_files_are_recognised_by_content(models):
    said = Quiet()
    find.run(FindConfig(folders=[str(models)], arch="wan", json_output=True), said)
    found = {one["component"]: one for one in json.loads(said.notes[-1])}
    assert set(found) == {"dit", "vae", "t5"}
    assert found["t5"]["path"].endswith("z.safetensors") and found["dit"]["variants"] == []


def test_a_command_takes_what_it_was_not_given(models, monkeypatch):
    monkeypatch.setenv("MUSUBI_MODELS", str(models))
    said = Quiet()
    config = pick.filled(train(task="t2v"), WAN, "train", said)
    assert config.dit.endswith("x.safetensors") and config.vae.endswith("y.safetensors")
    assert len([n for n in said.notes if n.startswith("--")]) == 3
    named = pick.filled(train(task="t2v", dit="mine", vae="v", t5="t"), WAN, "train", Quiet())
    assert named.dit == "mine"


def test_a_file_of_another_size_is_not_taken(models):
    said = Quiet()
    config = pick.filled(train(task="t2v-14B", models=str(models)), WAN, "train", said)
    assert config.dit is None and config.vae is not None
    (warning,) = said.warnings
    assert "x.safetensors: the dit of another size or task than t2v-14B" in warning


def test_files_that_fit_equally_well_are_asked_about(models):
    numbers = {**WAN.dit.tiny, "ffn_dim": 48}
    with torch.device("cpu"):
        other = WAN.dit.build(**numbers)
    save_file({k: v.contiguous() for k, v in other.state_dict().items()}, models / "vae" / "dit2.safetensors")  # fmt: skip
    with pytest.raises(ConfigError, match="Several files"):
        pick.filled(train(task="t2v", models=str(models)), WAN, "train", Quiet())


def test_folders_are_known_by_flag_variable_or_settings(tmp_path, monkeypatch):
    monkeypatch.delenv("MUSUBI_MODELS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "config"))
    assert model_folders() == []
    settings = tmp_path / "config" / "musubi" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"models = ['{tmp_path.as_posix()}']\n", encoding="utf-8")
    assert model_folders() == [tmp_path]
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("MUSUBI_MODELS", str(tmp_path / "b"))
    assert model_folders() == [tmp_path / "b"]
    assert model_folders(str(tmp_path)) == [tmp_path]
    for bad in ("models = 3\n", "models = [", "models = '/nowhere/at/all'\n"):
        monkeypatch.delenv("MUSUBI_MODELS", raising=False)
        settings.write_text(bad, encoding="utf-8")
        with pytest.raises(ConfigError):
            model_folders()


def test_find_without_a_folder_says_how_to_name_one(tmp_path, monkeypatch):
    monkeypatch.delenv("MUSUBI_MODELS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("APPDATA", str(tmp_path))
    with pytest.raises(ConfigError, match="No folder"):
        find.run(FindConfig(), Quiet())
    with pytest.raises(ConfigError, match="no folder"):
        find.run(FindConfig(folders=[str(tmp_path / "x")]), Quiet())
    said = Quiet()
    find.run(FindConfig(folders=[str(tmp_path)]), said)
    assert "No model file" in said.notes[-1]


def test_the_words_of_both_commands_are_understood():
    for words in (["models", "fetch", "wan", "--task", "t2v-14B"], ["models", "find", "a", "b"]):
        command = typed(words)
        assert command is not None and command.words == tuple(words[:2])
        CommandLine(command, words[2:])
