"""LoRA files: every form there and back, fused layers, and what is refused."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from musubi import registry
from musubi.errors import CheckpointError
from musubi.lora.adapter import Adapters
from musubi.lora.delta import Pair
from musubi.lora.files import FORMS, laid_out, read_lora, write_lora
from musubi.plugin import Component, Fuse, KeyMap, LoraTargets, Swap, Traits
from musubi.testing import twins

WAN = registry.find("wan")


@pytest.fixture(scope="module")
def pairs():
    dit = twins.build_twin(WAN.dit)
    made = Adapters.create(dit, WAN.dit.traits.lora, rank=2, alpha=1.0)
    torch.manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_()
    return made.tensors()


def same(found, pairs):
    assert set(found) == set(pairs)
    for name, pair in pairs.items():
        torch.testing.assert_close(found[name].matrix(), pair.matrix())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_back(pairs, tmp_path, form):
    path = tmp_path / "a [1] 猫.safetensors"
    write_lora(path, pairs, form=form, dtype=torch.float32, component=WAN.dit)
    file = read_lora(path, WAN)
    assert file.form == form and not file.unknown and file.complaint() is None
    same(file.deltas, pairs)
    assert any(name.endswith(".alpha") for name in load_file(path)) == (form == "kohya")


@pytest.mark.parametrize(
    ("prefix", "down", "up"),
    [
        ("", "lora_A", "lora_B"),
        ("base_model.model.", "lora_A.default", "lora_B.default"),
        ("diffusion_model.", "lora_down", "lora_up"),
    ],
)
def test_dotted_names_of_others(pairs, tmp_path, prefix, down, up):
    tensors = {}
    for name, pair in pairs.items():
        stem = prefix + name.removesuffix(".weight")
        tensors[f"{stem}.{down}.weight"] = pair.down
        tensors[f"{stem}.{up}.weight"] = pair.up
        tensors[f"{stem}.alpha"] = torch.tensor(1)
    save_file(tensors, tmp_path / "x.safetensors")
    same(read_lora(tmp_path / "x.safetensors", WAN).deltas, pairs)


def test_a_block_that_the_toy_lacks_is_still_known(tmp_path):
    pair = {"blocks.39.ffn.0": Pair(torch.randn(2, 4), torch.randn(4, 2))}
    write_lora(tmp_path / "x.safetensors", pair, component=WAN.dit)
    assert list(read_lora(tmp_path / "x.safetensors", WAN).pairs) == list(pair)


def test_names_that_match_nothing_are_told(pairs, tmp_path):
    tensors = laid_out(pairs)
    tensors["lora_te_text_model_q.lora_down.weight"] = torch.ones(2, 4)
    tensors["lora_te_text_model_q.lora_up.weight"] = torch.ones(4, 2)
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors", WAN)
    assert (
        "2 tensors of a text encoder not used" in file.complaint() and "lora_te" in file.complaint()
    )


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("x.hada_w1_a", "lacks hada_w1_b of 'x'"),
        ("x.lokr_w1", "lacks lokr_w2 or lokr_w2_a of 'x'"),
        ("x.dora_scale", "lacks down of 'x'"),
        ("x.on_input", "IA"),
        ("x.b1.weight", "GLoRA"),
        ("x.weight", "is not a LoRA"),
        ("x.lora_down.weight", "only one of the two"),
    ],
)
def test_other_kinds_are_refused(tmp_path, key, says):
    save_file({key: torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=says):
        read_lora(tmp_path / "x.safetensors", WAN)


def test_another_architecture_is_refused(tmp_path):
    pair = {"double_blocks.0.img_attn_qkv": Pair(torch.ones(2, 4), torch.ones(4, 2))}
    write_lora(
        tmp_path / "x.safetensors", pair, metadata={"ss_base_model_version": "hunyuan_video"}
    )
    with pytest.raises(CheckpointError, match="seems to be for hunyuan_video"):
        read_lora(tmp_path / "x.safetensors", WAN)


def test_numbers_that_are_not_finite(pairs, tmp_path):
    bad = {p: replace(pair, up=pair.up * float("nan")) for p, pair in pairs.items()}
    with pytest.raises(CheckpointError, match="not finite"):
        write_lora(tmp_path / "x.safetensors", bad)
    assert not (tmp_path / "x.safetensors").exists()
    save_file({k: v.contiguous() for k, v in laid_out(bad).items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        read_lora(tmp_path / "x.safetensors", WAN)


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.mod = nn.Linear(4, 12), nn.Linear(4, 8)


COMPONENT = Component(
    name="dit",
    role="dit",
    help="",
    build=Fused,
    infer=dict,
    dialects=(
        KeyMap(
            name="diffusers",
            marker=("q.weight",),
            rules=(
                Fuse(theirs=("q.{rest}", "k.{rest}", "v.{rest}"), ours="qkv.{rest}"),
                Swap(theirs="norm.{rest}", ours="mod.{rest}"),
            ),
        ),
    ),
    traits=Traits(lora=LoraTargets(include=(".*",))),
)


class Arch:
    name, title, variants, dit = "fused", "Fused", (), COMPONENT


def read_fused(path):
    return read_lora(path, Arch, {"qkv.weight": (12, 4), "mod.weight": (8, 4)}).pairs


def test_fused_and_swapped_layers_both_ways(tmp_path):
    pairs = {
        "qkv": Pair(torch.randn(2, 4), torch.randn(12, 2), 1.0),
        "mod": Pair(torch.randn(2, 4), torch.randn(8, 2), 4.0),
    }
    path = tmp_path / "x.safetensors"
    write_lora(path, pairs, form="diffusers", dtype=torch.float32, component=COMPONENT)
    assert "transformer.k.lora_B.weight" in load_file(path)
    found = read_fused(path)
    same(found, pairs)
    assert found["qkv"].rank == 2


def test_parts_of_different_ranks_become_one_pair(tmp_path):
    q, v = (torch.randn(2, 4), torch.randn(4, 2)), (torch.randn(3, 4), torch.randn(4, 3))
    tensors = {}
    for name, (down, up) in {"q": q, "v": v}.items():
        tensors[f"lora_unet_{name}.lora_down.weight"] = down
        tensors[f"lora_unet_{name}.lora_up.weight"] = up
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "x.safetensors")
    pair = read_fused(tmp_path / "x.safetensors")["qkv"]
    expected = torch.cat([q[1] @ q[0] / 2, torch.zeros(4, 4), v[1] @ v[0] / 3])
    assert pair.rank == 5
    torch.testing.assert_close(pair.matrix(), expected)


def test_hashes_and_model_spec(pairs, tmp_path):
    path = tmp_path / "x.safetensors"
    write_lora(path, pairs, metadata={"ss_base_model_version": "wan", "ss_output_name": "cat"})
    said = read_lora(path, WAN).metadata
    assert said["modelspec.architecture"] == "wan2.1/lora" and said["modelspec.title"] == "cat"
    assert len(said["sshs_model_hash"]) == 64 and len(said["sshs_legacy_hash"]) == 8
