"""What other programs load: one file in every form, and the sentence that says what to do."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.config.lora import LoraConvertConfig, LoraVerifyConfig
from musubi.errors import CheckpointError
from musubi.lora import convert
from musubi.lora.adapter import Adapters
from musubi.lora.files import laid_out, write_lora
from musubi.lora.verify import best_form, judge, run
from musubi.plugin import Quiet, Traits
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
    assert "| 40 | transformer.blocks.0." in line and line.endswith(
        "No layer has this name in ComfyUI."
    )


def test_alpha_in_the_metadata_alone(pairs, tmp_path):
    path = tmp_path / "a.safetensors"
    said = {"lora_adapter_metadata": json.dumps({"lora_alpha": 1})}
    write_lora(path, pairs, form="comfy", metadata=said, component=WAN.dit)
    (warning,) = verify(path).warnings
    assert "only in its metadata" in warning and "2 times as strong" in warning


def test_what_is_not_known_is_not_said_to_be_absent(pairs, tmp_path):
    path = tmp_path / "a.safetensors"
    more = {"diffusion_model.later_blocks.0.gate.diff": torch.ones(2)}
    save_file(laid_out(pairs, "comfy") | more, path)
    (comfyui, diffusers) = judge(WAN, list(load_file(path)))
    assert comfyui.unknown == tuple(more) and not comfyui.ignores
    assert diffusers.unknown == tuple(more) and not diffusers.ignores
    report = Quiet()
    run(LoraVerifyConfig(files=[str(path)], arch="wan"), report)
    (warning,) = report.warnings
    assert "Whether 1 tensor of a kind that this version does not know" in warning


@pytest.mark.parametrize(
    ("name", "comfyui", "diffusers"),
    [
        ("blocks.0.cross_attn.k_img.lora_down.weight", True, None),
        ("blocks.0.norm3.diff", True, False),
        ("blocks.0.self_attn.norm_q.diff", True, False),
        ("blocks.0.self_attn.q.diff_b", True, True),
        ("blocks.0.diff_m", False, False),
        ("blocks.0.modulation.diff", True, False),
        ("blocks.0.ffn.0.hada_w1_a", True, None),
        ("patch_embedding.diff_b", True, False),
    ],
)
def test_single_tensors_of_distilled_loras(pairs, name, comfyui, diffusers):
    """None: it would be refused, or goes with others of its layer."""
    full = f"diffusion_model.{name}"
    names = [*laid_out(pairs, "comfy"), full]
    if "lora_down" in name:
        names.append(full.replace("lora_down", "lora_up"))
    if "hada" in name:
        names += [full.replace("w1_a", f) for f in ("w1_b", "w2_a", "w2_b")]
    verdicts = judge(WAN, names)
    for verdict, expected in zip(verdicts, (comfyui, diffusers), strict=True):
        assert not verdict.unknown
        if expected is not None:
            assert (full in verdict.loads) == expected, verdict.program


HUNYUAN = registry.find("hunyuan_video")


@pytest.mark.parametrize(
    ("stem", "comfy", "diffusers"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", True, False),
        ("lora_unet_double_blocks_0_img_mlp_fc1", False, False),
        ("lora_unet_double_blocks_0_img_mlp_0", True, False),
        ("lora_unet_double_blocks_0_img_attn_proj", True, False),
        ("diffusion_model.double_blocks.0.img_attn_qkv", True, True),
        ("diffusion_model.double_blocks.0.img_attn.qkv", True, False),
        ("transformer.double_blocks.0.img_attn_qkv", True, True),
        ("transformer.transformer_blocks.0.attn.to_q", False, True),
        ("diffusion_model.single_blocks.0.linear1", True, None),
    ],
)
def test_a_network_whose_layers_comfyui_renames(stem, comfy, diffusers):
    verdicts = judge(HUNYUAN, [f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"])
    for verdict, expected in zip(verdicts, (comfy, diffusers), strict=True):
        assert expected is None or bool(verdict.loads) == expected, verdict
    verdicts = judge(HUNYUAN, [f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"])
    assert bool(verdicts[0].loads) == comfy and not verdicts[1].loads


def test_the_form_that_loads_everywhere():
    made = Adapters.create(
        twins.build_twin(HUNYUAN.dit), HUNYUAN.dit.traits.lora, rank=2, alpha=1.0
    )
    assert best_form(HUNYUAN, made.tensors()) == ("comfy", 1.0)
    for verdict in judge(HUNYUAN, list(laid_out(made.tensors(), "comfy"))):
        assert not verdict.ignores and not verdict.unknown
    comfyui, diffusers = judge(HUNYUAN, list(laid_out(made.tensors(), "kohya")))
    assert comfyui.loads and comfyui.ignores and not diffusers.loads


def test_wan_in_kohyas_form_only_when_complete(pairs):
    assert best_form(WAN, pairs) == ("kohya", 1.0)
    some = {n: pair for n, pair in pairs.items() if "ffn" not in n}
    assert best_form(WAN, some) == ("comfy", 1.0)


def test_a_program_that_has_not_the_network_is_not_asked(monkeypatch):
    monkeypatch.setattr("musubi.lora.names._built", lambda *_: {"q.weight": True})
    plain = type(
        "Plain",
        (),
        {
            "name": "plain",
            "title": "Plain",
            "variants": (),
            "dit": replace(WAN.dit, dialects=(), traits=Traits()),
        },
    )
    (only,) = judge(plain, ["diffusion_model.q.lora_A.weight", "diffusion_model.q.lora_B.weight"])
    assert only.program == "ComfyUI" and len(only.loads) == 2
