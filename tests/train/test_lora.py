"""LoRA options of `musubi train`, on the toy architecture."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from musubi.errors import MusubiError
from musubi.lora.options import arguments

UP, DOWN = "lora_unet_blocks_0_inner.lora_up.weight", "lora_unet_blocks_0_inner.lora_down.weight"
ALPHA = "lora_unet_blocks_0_inner.alpha"


def metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), "pt") as file:
        return dict(file.metadata() or {})


def test_the_base_stays_and_the_adapter_moves(toy) -> None:
    out = toy.train(
        network_dim=3, network_alpha=2, save_precision="fp32", gradient_checkpointing=True
    )
    tensors = load_file(out / "cat.safetensors")
    assert tensors[DOWN].shape == (3, 8) and tensors[DOWN].dtype == torch.float32
    assert float(tensors[ALPHA]) == 2
    assert tensors[UP].abs().sum() > 0
    said = metadata(out / "cat.safetensors")
    assert said["ss_network_dim"] == "3" and said["ss_steps"] == "4"
    assert said["modelspec.architecture"] == "toy/lora"
    assert said["modelspec.title"] == "cat"
    assert len(said["sshs_model_hash"]) == 64
    assert json.loads(said["ss_datasets"])[0]["image_directory"] == "cats"


def test_recomputing_changes_nothing(toy) -> None:
    one = toy.train(output_name="one", save_precision="fp32")
    two = toy.train(output_name="two", save_precision="fp32", gradient_checkpointing=True)
    a, b = load_file(one / "one.safetensors"), load_file(two / "two.safetensors")
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_without_metadata(toy) -> None:
    said = metadata(toy.train(no_metadata=True) / "cat.safetensors")
    kept = {"base_model_version", "network_module", "network_dim", "network_alpha"}
    assert {n for n in said if n.startswith("ss_")} == {f"ss_{n}" for n in kept}


def test_starting_from_a_lora(toy) -> None:
    first = toy.train(network_dim=3, network_alpha=2, save_precision="fp32", output_name="first")
    start = str(first / "first.safetensors")
    out = toy.train(
        network_weights=start, dim_from_weights=True, save_precision="fp32", learning_rate=1e-12
    )
    a, b = load_file(start), load_file(out / "cat.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[n], b[n], atol=1e-6) for n in a)


def test_resuming_a_lora_of_another_rank_is_refused(toy) -> None:
    toy.train(network_dim=3, save_state=True)
    with pytest.raises(MusubiError, match="rank 3, and this run has 4"):
        toy.train(network_dim=4, resume="auto")


def test_loraplus_and_dropout_and_norms(toy) -> None:
    options = ["loraplus_lr_ratio=16", "rank_dropout=0.1", "module_dropout=0.1"]
    out = toy.train(
        network_args=options,
        network_dropout=0.1,
        scale_weight_norms=0.01,
        learning_rate=0.1,
        save_precision="fp32",
        network_alpha=4,
    )
    tensors = load_file(out / "cat.safetensors")
    assert float((tensors[UP] @ tensors[DOWN]).norm()) <= 0.0101
    lines = (out / "cat" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert json.loads(lines[-1])["max_norm/max_key_norm"] <= 0.0101
    assert json.loads(metadata(out / "cat.safetensors")["ss_network_args"])["rank_dropout"] == "0.1"


def test_other_names_in_the_file(toy) -> None:
    out = toy.train(lora_format="comfy")
    assert "diffusion_model.blocks.0.inner.lora_A.weight" in load_file(out / "cat.safetensors")


def test_nothing_matched_is_refused_before_the_first_step(toy) -> None:
    with pytest.raises(MusubiError, match="pattern"):
        toy.train(network_args=["exclude_patterns=['.*']"])
    assert toy.records.seen == []


def test_patterns_choose_layers(toy) -> None:
    out = toy.train(network_args=["exclude_patterns=['.*']", r"include_patterns=['blocks\.1\..*']"])
    stems = {name.partition(".")[0] for name in load_file(out / "cat.safetensors")}
    assert stems == {"lora_unet_blocks_1_inner"}


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("rank_dropot=0.1", "Did you mean 'rank_dropout'"),
        ("rank_dropout", "has no '='"),
        ("rank_dropout=two", "not a number"),
        ("module_dropout=1.5", "not a number"),
        ("include_patterns=[1]", "not a list of texts"),
        ("include_patterns=['a'", "not a list of texts"),
    ],
)
def test_odd_network_args(argument: str, sentence: str) -> None:
    with pytest.raises(MusubiError, match=sentence):
        arguments([argument])


def test_network_args() -> None:
    found = arguments(
        [
            "loraplus_lr_ratio=4",
            "groups=attention,mlp",
            "include_patterns=[r'a\\.b']",
            "verbose=True",
        ]
    )
    assert found == {
        "loraplus_lr_ratio": 4.0,
        "groups": ["attention", "mlp"],
        "include_patterns": [r"a\.b"],
    }


def test_base_weights_are_merged_while_loading(toy) -> None:
    first = toy.train(network_dim=3, network_alpha=3, save_precision="fp32", output_name="first")
    start = str(first / "first.safetensors")
    plain = toy.train(output_name="plain", max_train_steps=1)
    merged = toy.train(
        output_name="merged", max_train_steps=1, base_weights=[start], base_weights_multiplier=[2.0]
    )

    def loss(name: str) -> float:
        return json.loads((plain / name / "metrics.jsonl").read_text())["loss/current"]

    assert loss("plain") != loss("merged")
    assert merged == plain
