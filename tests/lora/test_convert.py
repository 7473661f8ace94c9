"""Converting LoRA files: there and back without loss, and what is said and refused."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.config.lora import LoraConvertConfig
from musubi.errors import CheckpointError, ConfigError
from musubi.lora.adapter import Adapters
from musubi.lora.convert import run
from musubi.lora.delta import Pair
from musubi.lora.files import FORMS, laid_out, read_lora, write_lora
from musubi.lora.metadata import with_hashes
from musubi.plugin import Quiet
from musubi.testing import twins
from musubi.weights.files import open_weights

WAN = registry.find("wan")


def convert(source, output, target, **more):
    report = Quiet()
    run(LoraConvertConfig(input=str(source), output=str(output), target=target, **more), report)
    return report


@pytest.fixture(scope="module")
def pairs():
    dit = twins.build_twin(WAN.dit)
    made = Adapters.create(dit, WAN.dit.traits.lora, rank=3, alpha=1.0)
    torch.manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_()
    return made.tensors()


def write(path, pairs, form, dtype=torch.float32, **metadata):
    write_lora(path, pairs, form=form, dtype=dtype, metadata=metadata, component=WAN.dit)
    return path


@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("source", FORMS)
def test_every_form_becomes_every_form(pairs, tmp_path, source, target):
    a = write(tmp_path / "a.safetensors", pairs, source, ss_base_model_version="wan", mine="kept")
    b = tmp_path / "new folder" / "b.safetensors"
    convert(a, b, target)
    found = read_lora(b, WAN)
    assert found.form == target and found.deltas.keys() == pairs.keys()
    for path, pair in pairs.items():
        torch.testing.assert_close(found.deltas[path].matrix(), pair.matrix())
        alpha = 1.0 if (source, target) == ("kohya", "kohya") else 3.0
        assert found.deltas[path].alpha == (alpha if target == "kohya" else None)
    assert found.metadata["mine"] == "kept"
    assert found.metadata == with_hashes(load_file(b), found.metadata)


@pytest.mark.parametrize("between", FORMS)
@pytest.mark.parametrize("form", ["comfy", "diffusers"])
def test_a_folded_file_comes_back_bit_for_bit(pairs, tmp_path, form, between):
    a = write(tmp_path / "a.safetensors", pairs, form, torch.bfloat16)
    convert(a, tmp_path / "b.safetensors", between)
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", form)
    first, last = load_file(a), load_file(tmp_path / "c.safetensors")
    assert first.keys() == last.keys()
    assert all(t.dtype == torch.bfloat16 and torch.equal(t, last[n]) for n, t in first.items())


def test_the_file_is_known_by_its_names_or_by_arch(pairs, tmp_path):
    a = write(tmp_path / "a.safetensors", pairs, "diffusers")
    convert(a, tmp_path / "b.safetensors", "kohya")
    convert(a, tmp_path / "c.safetensors", "kohya", arch="wan")
    assert load_file(tmp_path / "b.safetensors").keys() == laid_out(pairs).keys()
    strange = {"x.lora_A.weight": torch.ones(1, 2), "x.lora_B.weight": torch.ones(2, 1)}
    save_file(strange, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"Add --arch and one of .*wan"):
        convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "kohya")


@pytest.mark.parametrize(("word", "form"), [("other", "comfy"), ("default", "kohya")])
def test_old_words_for_the_target(pairs, tmp_path, word, form):
    a = write(tmp_path / "a.safetensors", pairs, "kohya")
    report = convert(a, tmp_path / "b.safetensors", word)
    assert f"--target {word} is called {form} here." in report.notes
    assert read_lora(tmp_path / "b.safetensors", WAN).form == form


def test_what_means_nothing_is_refused_unless_asked_for(pairs, tmp_path):
    stranger = {
        "lora_te_q.lora_down.weight": torch.ones(2, 4),
        "lora_te_q.lora_up.weight": torch.ones(4, 2),
        "lora_unet_x.diff": torch.ones(2),
    }
    save_file(laid_out(pairs) | stranger, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"3 tensors .* does not know") as raised:
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "comfy")
    assert "--allow_lossy" in raised.value.fix and not (tmp_path / "b.safetensors").exists()
    report = convert(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", "comfy", allow_lossy=True
    )
    (warning,) = report.warnings
    assert "3 tensors that match no layer" in warning and all(name in warning for name in stranger)


def test_the_input_is_not_overwritten(pairs, tmp_path):
    a = write(tmp_path / "a.safetensors", pairs, "kohya")
    before = a.read_bytes()
    with pytest.raises(ConfigError, match="also read"):
        convert(a, tmp_path / "." / "a.safetensors", "comfy")
    assert a.read_bytes() == before


def test_alpha_of_peft_is_folded_once(pairs, tmp_path):
    plain = {p: replace(pair, alpha=None) for p, pair in pairs.items()}
    a = write(
        tmp_path / "a.safetensors",
        plain,
        "diffusers",
        lora_adapter_metadata='{"transformer.lora_alpha": 6}',
    )
    convert(a, tmp_path / "b.safetensors", "comfy")
    found = read_lora(tmp_path / "b.safetensors", WAN)
    assert "lora_adapter_metadata" not in found.metadata
    for path, pair in plain.items():
        torch.testing.assert_close(found.deltas[path].matrix(), 2 * pair.matrix())


def test_alpha_that_sixteen_bits_do_not_hold(tmp_path):
    wide = {"blocks.0.ffn.0": Pair(torch.randn(301, 4), torch.randn(4, 301))}
    a = write(tmp_path / "a.safetensors", wide, "comfy", torch.bfloat16)
    convert(a, tmp_path / "b.safetensors", "kohya")
    tensors = load_file(tmp_path / "b.safetensors")
    assert float(tensors["lora_unet_blocks_0_ffn_0.alpha"]) == 301
    assert tensors["lora_unet_blocks_0_ffn_0.lora_up.weight"].dtype == torch.bfloat16


def test_dtypes(pairs, tmp_path):
    strong = {p: replace(pair, up=pair.up * 1e4, alpha=30.0) for p, pair in pairs.items()}
    a = write(tmp_path / "a.safetensors", strong, "kohya", torch.float16)
    with pytest.raises(CheckpointError, match="not finite"):
        convert(a, tmp_path / "b.safetensors", "comfy")
    assert not (tmp_path / "b.safetensors").exists()
    convert(a, tmp_path / "b.safetensors", "comfy", dtype="fp32")
    with open_weights(tmp_path / "b.safetensors") as weights:
        assert set(weights.dtypes.values()) == {torch.float32}
