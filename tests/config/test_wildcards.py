"""Wildcards in lists of paths, which some shells leave to the program."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.cli import main
from musubi.config.commands import COMMANDS
from musubi.config.fields import flags
from musubi.config.wildcards import PATHS, expanded
from musubi.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three LoRA files, one with letters that are wildcards elsewhere."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("b", "a", "c[1]")):
        pair = {
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.full((2, 8), 1.0 + i),
            "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.ones(8, 2),
        }
        save_file(pair, tmp_path / f"{name}.safetensors")
    return tmp_path


def run(line, *, ends=0):
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert (end.value.code or 0) == ends, line


def test_what_matches_is_sorted_and_what_exists_is_itself(folder):
    assert expanded(["z", "[ab].*", "c[1].safetensors"], "--x") == [
        "z",
        "a.safetensors",
        "b.safetensors",
        "c[1].safetensors",
    ]
    assert expanded([f"{folder.as_posix()}/?.safetensors"], "--x") == [
        str(folder / name) for name in ("a.safetensors", "b.safetensors")
    ]


def test_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert expanded(["~/a*"], "--x") == [str(folder / "a.safetensors")]


def test_nothing_matches_is_one_sentence(folder, capsys):
    run("lora info *.bin", ends=2)
    assert capsys.readouterr().err.splitlines()[0].endswith("--files: nothing matches '*.bin'.")
    (folder / "run.toml").write_text("lora_weight = '*.pt'", encoding="utf-8")
    run("lora merge --config run.toml --arch wan --dit x --save_merged_model y", ends=2)
    assert "'lora_weight' in run.toml: nothing matches '*.pt'." in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a\0*", "\ud800*"])
def test_what_no_path_can_hold_is_refused_as_ever(text):
    assert expanded([text, 3], "--x") == [text, 3]


def test_commands_take_them(folder, capsys):
    run("lora info [ab].safetensors --json")
    assert len(json.loads(capsys.readouterr().out)) == 2
    run("lora ema --no_sort --beta 0.5 --output_file out.st.safetensors ?.safetensors")
    (down,) = (t for n, t in load_file("out.st.safetensors").items() if "lora_A" in n)
    assert torch.equal(down, torch.full((2, 8), 1.5))
    run("lora resize a* b* --arch wan --output sum.safetensors --target comfy")
    run("lora verify [ab].safetensors --arch wan")
    assert capsys.readouterr().out.count("a.safetensors") and folder
    with pytest.raises(ConfigError, match="nothing matches"):
        expanded(["d*"], "--lora_weight")


def test_every_option_that_takes_several_files_is_known_as_such():
    found = SimpleNamespace(paths=set(), others=set())
    for command in COMMANDS:
        for name in registry.names() if command.place is not None else (None,):
            architecture = None if name is None else registry.find(name)
            for flag in flags(command.options(architecture)).values():
                if flag.words == -1:
                    kind = found.paths if flag.metavar in PATHS else found.others
                    kind.add(flag.name)
    assert {"lora_weight", "base_weights", "latent_path", "files", "folders"} <= found.paths
    assert not [n for n in found.others if n.endswith(("_weight", "path", "folder"))]
    assert not found.others & found.paths
    assert not {n for n in found.others if "file" in n} - {
        "file"
    }  # words in names, of `models fetch`
