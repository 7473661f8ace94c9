"""What other programs load: one file in every form, and the sentence that says what to do."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from musubi import registry
from musubi.config.lora import LoraConvertConfig, LoraVerifyConfig
from musubi.errors import CheckpointError
from musubi.lora import convert
from musubi.lora.adapter import Adapters
from musubi.lora.files import laid_out, write_lora
from musubi.lora.verify import judge, run
from musubi.plugin import (
    Component,
    Fuse,
    KeyMap,
    LoraNames,
    LoraTargets,
    Quiet,
    Rename,
    Traits,
)
from musubi.testing import twins

WAN = registry.find("wan")


@pytest.fixture(scope="module")
def pairs():
    dit = twins.build_twin(WAN.dit)
    return Adapters.create(dit, WAN.dit.traits.lora, rank=2, alpha=1.0).tensors()


def verify(*paths):
    report = Quiet()
    run(LoraVerifyConfig(files=[str(p) for p in paths]), report)
    return report


@pytest.mark.parametrize("form", ["kohya", "comfy"])
def test_what_loads_everywhere(pairs, tmp_path, form):
    path = tmp_path / "a.safetensors"
    write_lora(path, pairs, form=form, component=WAN.dit)
    report = verify(path)
    count = len(laid_out(pairs, form))
    assert [line.split(" | ")[:2] for line in report.notes[1:4:2]] == [["loads", str(count)]] * 2
    assert report.notes[0] == f"ComfyUI: {path}" and report.notes[2] == f"diffusers: {path}"
    assert report.notes[-1] == "Every tensor loads everywhere." and not report.warnings


def test_what_does_not_is_told_how_to_convert_and_then_does(pairs, tmp_path):
    path = tmp_path / "a b.safetensors"
    partial = {p: pair for p, pair in pairs.items() if "ffn" not in p}
    write_lora(path, partial, form="kohya", component=WAN.dit)
    with pytest.raises(CheckpointError) as raised:
        verify(path)
    assert "ComfyUI 48 of 48 tensors and diffusers 0 of 48 tensors." in raised.value.what
    output = tmp_path / "a b-comfy.safetensors"
    assert f'--input "{path}" --output "{output}" --target comfy`' in raised.value.fix
    convert.run(LoraConvertConfig(input=str(path), output=str(output), target="comfy"), Quiet())
    verify(output)


def test_a_table_says_what_does_not_load_and_why(pairs, tmp_path):
    path = tmp_path / "a.safetensors"
    write_lora(path, pairs, form="diffusers", component=WAN.dit)
    report = Quiet()
    with pytest.raises(CheckpointError, match="--target comfy"):
        run(LoraVerifyConfig(files=[str(path)], arch="wan"), report)
    (line,) = [n for n in report.notes if n.startswith("does not load")]
    assert "| 40 | transformer.blocks.0." in line and line.endswith("No layer there is called so.")


def test_alpha_in_the_metadata_alone(pairs, tmp_path):
    path = tmp_path / "a.safetensors"
    said = {"lora_adapter_metadata": json.dumps({"lora_alpha": 1})}
    write_lora(path, pairs, form="comfy", metadata=said, component=WAN.dit)
    (warning,) = verify(path).warnings
    assert "only in its metadata" in warning and "2 times as strong" in warning


def test_biases_and_norms_are_not_judged(pairs, tmp_path):
    path = tmp_path / "a.safetensors"
    more = {"diffusion_model.blocks.0.norm3.diff": torch.ones(2)}
    save_file(laid_out(pairs, "comfy") | more, path)
    (warning,) = verify(path).warnings
    assert "1 tensors change biases or norms" in warning


class Renamed:
    """An architecture whose layers ComfyUI calls otherwise, and diffusers takes apart."""

    name = title = "renamed"
    variants = ()
    dit = Component(
        name="dit",
        role="dit",
        help="",
        build=lambda: torch.nn.ModuleDict(
            {"qkv": torch.nn.Linear(2, 6), "mlp": torch.nn.Linear(2, 2)}
        ),
        infer=dict,
        dialects=(
            KeyMap(
                name="comfyui",
                marker=("mlp.0.weight",),
                prefix="model.diffusion_model.",
                rules=(Rename(theirs="mlp.0.{rest}", ours="mlp.{rest}"),),
            ),
            KeyMap(
                name="diffusers",
                marker=("q.weight",),
                rules=(Fuse(theirs=("q.{rest}", "k.{rest}", "v.{rest}"), ours="qkv.{rest}"),),
            ),
        ),
        traits=Traits(
            lora=LoraTargets(include=(".*",)),
            lora_names=(
                LoraNames(
                    program="diffusers",
                    prefix="diffusion_model.",
                    down=("lora_A",),
                    alpha="refused",
                ),
                LoraNames(program="ComfyUI", prefix="transformer."),
            ),
        ),
        tiny={"unused": 0},
    )


@pytest.mark.parametrize(
    ("stem", "comfy", "diffusers"),
    [
        ("lora_unet_qkv", True, False),
        ("lora_unet_mlp", False, False),
        ("lora_unet_mlp_0", True, False),
        ("diffusion_model.mlp.0", True, False),
        ("diffusion_model.mlp", True, True),
        ("diffusion_model.qkv", True, True),
        ("transformer.mlp", True, True),
        ("transformer.k", False, True),
        ("transformer.qkv", True, False),
    ],
)
def test_an_architecture_that_comfyui_renames(stem, comfy, diffusers, monkeypatch):
    monkeypatch.setattr("musubi.lora.names._built", lambda *_: frozenset(("qkv", "mlp")))
    verdicts = judge(Renamed, [f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"])
    assert [bool(v.loads) for v in verdicts] == [comfy, diffusers]
    verdicts = judge(Renamed, [f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"])
    assert [bool(v.loads) for v in verdicts] == [comfy, False]


def test_a_program_that_has_not_the_network_is_not_asked(monkeypatch):
    monkeypatch.setattr("musubi.lora.names._built", lambda *_: frozenset(("q",)))
    plain = type("Plain", (Renamed,), {"dit": replace(Renamed.dit, dialects=(), traits=Traits())})
    (only,) = judge(plain, ["diffusion_model.q.lora_A.weight", "diffusion_model.q.lora_B.weight"])
    assert only.program == "ComfyUI" and len(only.loads) == 2
