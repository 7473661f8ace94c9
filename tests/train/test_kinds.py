"""`--network_type` and its relatives: trained, stopped, gone on with, written and started from."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from musubi import registry
from musubi.config.lora import LoraEmaConfig
from musubi.errors import MusubiError
from musubi.lora import ema, info
from musubi.lora.adapter import Adapters
from musubi.lora.files import read_lora
from musubi.plugin import Quiet
from musubi.testing import twins
from musubi.train.adapters import Lora

KINDS = {
    "lora": {"rank_stabilized": True, "network_reg_dims": [r"blocks\.1\..*=3:6"]},
    "pissa": {"network_init": "pissa"},
    "loha": {"network_type": "loha"},
    "lokr": {"network_type": "lokr", "network_args": ["factor=2", "decompose_both=True"]},
    "dora": {"network_type": "dora"},
    "dora of loha": {"network_type": "loha", "network_args": ["dora_wd=True"]},
    "oft": {"network_type": "oft", "network_args": ["rescaled=True"]},
    "full": {"network_type": "full"},
    "old loha": {"network_module": "networks.loha"},
    "old lokr": {"network_module": "networks.lokr", "network_args": ["factor=4"]},
    "lycoris": {
        "network_module": "lycoris.kohya",
        "network_args": ["algo=lokr", "factor=2", "preset=full", "rs_lora=True"],
    },
}
WORDS = {
    "lora": "lora_up.weight",
    "pissa": "lora_up.weight",
    "loha": "hada_w1_a",
    "lokr": "lokr_w1",
    "dora": "dora_scale",
    "dora of loha": "dora_scale",
    "oft": "oft_blocks",
    "full": "diff",
    "old loha": "hada_w1_a",
    "old lokr": "lokr_w1",
    "lycoris": "lokr_w1",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_ends_where_the_whole_one_ends(toy, kind) -> None:
    options = {"network_dim": 2, "save_precision": "fp32", "network_dropout": 0.1, **KINDS[kind]}
    whole = load_file(toy.train(output_name="whole", **options) / "whole.safetensors")
    toy.train(output_name="part", save_every_n_steps=2, save_state=True, **options)
    out = toy.folder / "out"
    for name in ("part.safetensors", "part-step00000004.safetensors"):
        (out / name).unlink()
    for name in ("part-state", "part-step00000004-state"):
        for path in sorted((out / name).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (out / name).rmdir()
    toy.train(output_name="part", resume="auto", save_every_n_steps=2, save_state=True, **options)
    assert any("after step 2" in note for note in toy.report.notes)
    part = load_file(out / "part.safetensors")
    assert whole.keys() == part.keys() and all(torch.equal(whole[n], part[n]) for n in whole)
    assert any(name.endswith(WORDS[kind]) for name in whole)
    file = read_lora(out / "whole.safetensors", toy.architecture)
    assert not file.unknown and any(d.norm() != 0 for d in file.deltas.values())
    said = info.describe(out / "whole.safetensors")
    assert said["modules"] >= 2 and not said["not_finite"]


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora", "oft", "full"])
def test_what_a_run_saved_is_averaged_and_started_from(toy, kind) -> None:
    options = {"network_dim": 2, "save_precision": "fp32", **KINDS[kind]}
    out = toy.train(save_every_n_steps=2, **options)
    files = [str(out / f"cat-step0000000{n}.safetensors") for n in (2, 4)]
    config = LoraEmaConfig(files=files, output_file=str(out / "ema.safetensors"), beta=0.5)
    ema.run(config, Quiet())
    first, last, mean = (load_file(p) for p in (*files, out / "ema.safetensors"))
    for name in first:
        torch.testing.assert_close(mean[name], (first[name] + last[name]) / 2)
    again = {**options, "network_weights": files[1], "learning_rate": 1e-12, "max_train_steps": 1}
    for more in ({}, {"dim_from_weights": True, "network_dim": None}):
        toy.train(output_name="again", **{**again, **more})
        for name, tensor in load_file(out / "again.safetensors").items():
            torch.testing.assert_close(tensor, last[name])
    other = "lora" if kind != "lora" else "loha"
    with pytest.raises(MusubiError, match="is trained"):
        toy.train(output_name="b", network_type=other, network_dim=2, network_weights=files[1])


def test_the_scale_of_a_rank_stabilized_lora_is_in_its_file(toy) -> None:
    out = toy.train(save_precision="fp32", network_dim=4, network_alpha=2, **KINDS["lora"])
    tensors = load_file(out / "cat.safetensors")
    assert float(tensors["lora_unet_blocks_0_inner.alpha"]) == pytest.approx(2 * 4**0.5)
    assert float(tensors["lora_unet_blocks_1_inner.alpha"]) == pytest.approx(6 * 3**0.5)
    assert tensors["lora_unet_blocks_1_inner.lora_down.weight"].shape[0] == 3


def test_metadata_in_the_words_of_the_tools_that_know_the_kind(toy) -> None:
    for kind, module, args in (
        ("lokr", "networks.lokr", {"factor": "2", "decompose_both": "True"}),
        ("dora", "lycoris.kohya", {"algo": "lora", "dora_wd": "True"}),
        ("oft", "lycoris.kohya", {"algo": "diag-oft", "rescaled": "True"}),
    ):
        out = toy.train(network_dim=2, **KINDS[kind])
        with safe_open(str(out / "cat.safetensors"), "pt") as file:
            said = file.metadata()
        assert said["ss_network_module"] == module
        assert json.loads(said["ss_network_args"]) == args


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"network_type": "loha", "network_module": "networks.lokr"}, "contradict"),
        ({"network_type": "lora", "network_args": ["algo=loha"]}, "contradict"),
        ({"network_args": ["factor=4"]}, "for the type lokr"),
        ({"network_args": ["algo=glora"]}, "not trained here"),
        ({"network_module": "networks.tlora.x.y"}, "not known"),
        ({"network_type": "loha", "network_init": "pissa"}, "for the type lora"),
        ({"network_type": "oft", "network_args": ["dora_wd=True"]}, "no meaning for oft"),
        ({"network_type": "loha", "network_args": ["loraplus_lr_ratio=4"]}, "has none"),
        ({"network_args": ["conv_alpha=1"]}, "conv_dim"),
        ({"network_reg_dims": ["blocks"]}, "not a pattern and a rank"),
        ({"network_args": ["decompose_both=maybe"]}, "neither true nor false"),
        ({"full": True, "network_type": "loha"}, "--network_type means nothing"),
        ({"full": True, "network_init": "pissa"}, "--network_init means nothing"),
    ],
)
def test_what_contradicts_itself_is_refused(toy, options, sentence) -> None:
    with pytest.raises(MusubiError, match=sentence):
        toy.train(**options)


def test_the_end_says_what_other_programs_would_leave_out() -> None:
    hunyuan = registry.find("hunyuan_video")
    made = Adapters.create(
        twins.build_twin(hunyuan.dit), hunyuan.dit.traits.lora, rank=2, alpha=1.0
    )
    common = {"kind": "lora", "rank": 2, "alpha": 1.0, "plus": None, "max_norm": None}
    lora = Lora(made, hunyuan, form="kohya", save_dtype=torch.float32, **common)
    comfyui, diffusers, advice = lora.remarks()
    assert "ComfyUI leaves out 24 of its 60 tensors" in comfyui
    assert "diffusers loads none of its 60 tensors" in diffusers
    assert "`musubi lora convert --target comfy`" in advice
    assert not Lora(made, hunyuan, form="comfy", save_dtype=torch.float32, **common).remarks()
