"""Merging from file to file, and what `lora info` says."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.config.lora import LoraInfoConfig, LoraMergeConfig
from musubi.config.options import for_architecture
from musubi.errors import ConfigError
from musubi.lora import info, merge
from musubi.lora.adapter import Adapters
from musubi.lora.files import read_lora, write_lora
from musubi.lora.merge import merging_transform
from musubi.plugin import Quiet
from musubi.testing import twins
from musubi.weights.load import load

WAN = registry.find("wan")
DIT = WAN.dit
Q = "blocks.0.self_attn.q.weight"


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "a.safetensors"
    made = Adapters.create(twins.build_twin(DIT), DIT.traits.lora, rank=2, alpha=1.0)
    torch.manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.2)
    write_lora(path, made.tensors(), dtype=torch.float32, metadata={"ss_base_model_version": "wan"})
    return path


def merged(tmp_path, dit, *loras, **options):
    out = tmp_path / "merged.safetensors"
    model = for_architecture(LoraMergeConfig, WAN, "lora merge")
    report = Quiet()
    config = model(
        dit=str(dit),
        lora_weight=[str(p) for p in loras],
        save_merged_model=str(out),
        device="cpu",
        **options,
    )
    merge.run(config, WAN, report)
    return out, report


@pytest.mark.parametrize("dialect", [d.name for d in DIT.dialects])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_file_is_what_loading_with_the_lora_gives(tmp_path, lora, dialect, dtype):
    dit = twins.write_twin(DIT, tmp_path, dialect=dialect, dtype=dtype)
    out, report = merged(tmp_path, dit, lora, lora, lora_multiplier=[0.5])
    file = read_lora(lora, WAN)
    transform = merging_transform([(file, 0.5), (file, 1.0)])
    expected = load(DIT, dit, device="cpu", transform=transform).state_dict()
    found = load(DIT, out, device="cpu").state_dict()
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    before, after = load_file(dit), load_file(out)
    assert set(before) == set(after) and not transform.unused and not report.warnings
    assert all(before[n].dtype == after[n].dtype for n in before)


def test_patterns_and_what_is_not_touched(tmp_path, lora):
    dit = twins.write_twin(DIT, tmp_path)
    out, _ = merged(tmp_path, dit, lora, include_patterns=["blocks_0_self_attn_q"])
    before, after = load_file(dit), load_file(out)
    assert [n for n in before if not torch.equal(before[n], after[n])] == [Q]


def test_eight_bits(tmp_path, lora):
    dit = load_file(twins.write_twin(DIT, tmp_path))
    scale = dit[Q].abs().max() / 448
    scaled = {**dit, Q: (dit[Q] / scale).to(torch.float8_e4m3fn)}
    scaled[Q.replace("weight", "scale_weight")] = scale.reshape(1)
    scaled["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    plain = {**dit, Q: dit[Q].to(torch.float8_e4m3fn)}
    delta = read_lora(lora, WAN).deltas[Q].matrix() * 20
    step = dit[Q].abs().amax(1, keepdim=True) / 127
    integers = {**dit, Q: (dit[Q] / step).round().to(torch.int8)}
    integers[Q.replace("weight", "weight_scale")] = step
    for tensors in (scaled, plain, integers):
        save_file(tensors, tmp_path / "eight.safetensors")
        out, _ = merged(
            tmp_path,
            tmp_path / "eight.safetensors",
            lora,
            lora_multiplier=[20.0],
            include_patterns=["blocks_0_self_attn_q"],
        )
        after = load_file(out)
        assert set(after) == set(tensors) and after[Q].dtype == tensors[Q].dtype
        leaf = "weight_scale" if tensors is integers else "scale_weight"
        factor = after.get(Q.replace("weight", leaf), torch.ones(1))
        old = tensors[Q].float() * tensors.get(Q.replace("weight", leaf), torch.ones(1))
        error = (after[Q].float() * factor - old - delta).norm() / (old + delta).norm()
        assert error < 0.04


@pytest.mark.parametrize("dialect", [d.name for d in DIT.dialects])
def test_eight_bits_with_scales_are_written(tmp_path, lora, dialect):
    dit = twins.write_twin(DIT, tmp_path, dialect=dialect, dtype=torch.bfloat16)
    wide, _ = merged(tmp_path, dit, lora, save_precision="fp32")
    expected = load(DIT, wide, device="cpu", dtype=torch.float32).state_dict()
    out, report = merged(tmp_path, dit, lora, save_precision="fp8_scaled")
    tensors = load_file(out)
    layout = next(d for d in DIT.dialects if d.name == dialect)
    assert tensors[f"{layout.prefix}scaled_fp8"].shape == (2,) and not report.warnings
    eight = [n for n, t in tensors.items() if t.dtype == torch.float8_e4m3fn and t.ndim == 2]
    assert len(eight) == 20  # what the network says may be in 8 bits
    for name in eight:
        scale = tensors[name.replace("weight", "scale_weight")]
        assert scale.shape == () and scale.dtype == torch.float32
        assert tensors[name].float().abs().max() == 448
    found = load(DIT, out, device="cpu", dtype=torch.float32).state_dict()
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() / tensor.norm() < 0.04, name
    again, _ = merged(tmp_path / "again", out, lora, lora_multiplier=[0.0], save_precision="bf16")
    back = load_file(again)
    assert not any("scale" in n and "scale_shift" not in n for n in back)
    assert {t.dtype for t in back.values()} <= {torch.bfloat16, torch.float32}


def test_a_large_difference_is_read_when_it_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr("musubi.lora.files._LARGE", 1)
    dit = twins.write_twin(DIT, tmp_path)
    change = torch.randn(load_file(dit)[Q].shape)
    save_file(
        {f"diffusion_model.{Q.removesuffix('.weight')}.diff": change}, tmp_path / "d.safetensors"
    )
    file = read_lora(tmp_path / "d.safetensors", WAN)
    assert type(file.deltas[Q]).__name__ == "StoredDifference"
    out, _ = merged(tmp_path, dit, tmp_path / "d.safetensors", lora_multiplier=[0.5])
    torch.testing.assert_close(load_file(out)[Q], load_file(dit)[Q] + 0.5 * change)
    kept = {n: d.mapped(lambda t: t * 2) for n, d in file.deltas.items()}
    assert torch.equal(kept[Q].value, 2 * change)
    made = Adapters.from_deltas(twins.build_twin(DIT), file.deltas)
    assert torch.equal(made.tensors()[Q].value, change)


def test_pickled_input(tmp_path, lora):
    dit = twins.write_twin(DIT, tmp_path, suffix=".pth")
    out, _ = merged(tmp_path, dit, lora)
    assert not torch.equal(load_file(out)[Q], torch.load(dit, weights_only=True)[Q])


def test_refusals(tmp_path, lora):
    dit = twins.write_twin(DIT, tmp_path)
    with pytest.raises(ConfigError, match="2 values for 1 file"):
        merged(tmp_path, dit, lora, lora_multiplier=[1.0, 2.0])
    with pytest.raises(ConfigError, match="No layer is left"):
        merged(tmp_path, dit, lora, include_patterns=["nothing"])
    with pytest.raises(ConfigError, match="merged into"):
        merged(tmp_path, dit.rename(tmp_path / "merged.safetensors"), lora)


def test_info(lora):
    report = Quiet()
    info.run(LoraInfoConfig(files=[str(lora)], json_output=True), report)
    (said,) = json.loads(report.notes[0])
    assert (said["architecture"], said["form"], said["ranks"]) == ("wan", "kohya", [2])
    assert said["alphas"] == [1.0] and not said["zero"] and said["norms"]
    info.run(LoraInfoConfig(files=[str(lora)]), report)
    assert any("ss_base_model_version" in note for note in report.notes)


def test_info_names_what_is_zero_or_broken(tmp_path, lora):
    tensors = load_file(lora)
    ups = [name for name in tensors if name.endswith("lora_up.weight")]
    tensors[ups[0]] *= 0
    tensors[ups[1]] *= float("nan")
    save_file(tensors, tmp_path / "x.safetensors")
    said = info.describe(tmp_path / "x.safetensors")
    assert len(said["zero"]) == 1 and len(said["not_finite"]) == 1
