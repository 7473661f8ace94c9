"""LoRA files of two experts, told apart by their metadata: in the wrong place they are refused."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.cli import main
from musubi.lora.adapter import Adapters
from musubi.lora.files import write_lora
from musubi.lora.metadata import DENOISER
from musubi.testing import twins

WAN = registry.find("wan")
HIGH = "dit_high_noise"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two checkpoints alike in shape, and a LoRA that was trained for each."""
    folder = tmp_path_factory.mktemp("experts")
    made = {"folder": folder}
    for seed, name in enumerate(("dit", HIGH)):
        made[name] = twins.write_twin(WAN.dit, folder / name)
        pair = Adapters.create(twins.build_twin(WAN.dit), WAN.dit.traits.lora, rank=2, alpha=2.0)
        torch.manual_seed(seed)
        for parameter in pair.parameters():
            parameter.data.normal_(std=0.1)
        said = {"ss_base_model_version": "wan", DENOISER: name}
        made[f"{name}_lora"] = path = folder / f"{name}_lora.safetensors"
        write_lora(
            path, pair.tensors(), form="kohya", dtype=torch.float32, component=WAN.dit,
            metadata=said,
        )  # fmt: skip
    return made


def run(capsys, files, words):
    """The exit code of a command, and what it said."""
    with pytest.raises(SystemExit) as end:
        main([word.format(**files) for word in words.split()])
    return end.value.code or 0, " ".join(capsys.readouterr().err.split())


def delta(path, name="blocks.0.self_attn.q.weight"):
    pairs, stem = load_file(path), "lora_unet_blocks_0_self_attn_q"
    return name, pairs[f"{stem}.lora_up.weight"] @ pairs[f"{stem}.lora_down.weight"]


MERGE = "lora merge --arch wan --save_merged_model {folder}/merged.safetensors"
SAVE = "generate --arch wan --task t2v-A14B --save_merged_model {folder}/merged.safetensors"


@pytest.mark.parametrize(
    ("words", "expert"),
    [
        (MERGE + " --dit {dit} --lora_weight {dit_lora}", "dit"),
        (MERGE + " --dit_high_noise {dit_high_noise} --lora_weight {dit_high_noise_lora}", HIGH),
        (SAVE + " --dit {dit} --lora_weight {dit_lora}", "dit"),
        (
            SAVE + " --dit_high_noise {dit_high_noise} "
            "--lora_weight_high_noise {dit_high_noise_lora}",
            HIGH,
        ),
    ],
)
def test_each_file_goes_into_its_own_checkpoint(capsys, files, words, expert):
    assert run(capsys, files, words)[0] == 0
    name, change = delta(files[f"{expert}_lora"])
    found = load_file(files["folder"] / "merged.safetensors")[name]
    torch.testing.assert_close(found - load_file(files[expert])[name], change, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            MERGE + " --dit {dit} --lora_weight {dit_high_noise_lora}",
            "was trained for the dit_high_noise, and --dit is for the dit.",
        ),
        (
            MERGE + " --dit_high_noise {dit_high_noise} --lora_weight {dit_lora}",
            "was trained for the dit, and --dit_high_noise is for the dit_high_noise.",
        ),
        (
            MERGE + " --dit {dit} --dit_high_noise {dit_high_noise} --lora_weight {dit_lora}",
            "--dit and --dit_high_noise are two checkpoints, and one is written.",
        ),
        (SAVE + " --dit {dit} --lora_weight {dit_high_noise_lora}", "trained for the dit_high"),
        (
            SAVE + " --dit {dit} --lora_weight {dit_lora} "
            "--lora_weight_high_noise {dit_high_noise_lora}",
            "writes one checkpoint, and --lora_weight_high_noise is for another.",
        ),
    ],
)
def test_in_the_wrong_place_it_is_refused(capsys, files, words, says):
    (files["folder"] / "merged.safetensors").unlink(missing_ok=True)
    code, said = run(capsys, files, words)
    assert code == 2 and says in said, said
    assert not (files["folder"] / "merged.safetensors").exists()


@pytest.mark.parametrize("target", ["diffusers", "comfy", "kohya"])
def test_whose_file_it_is_survives_a_conversion(capsys, files, target):
    made = files["folder"] / f"{target}.safetensors"
    words = f"lora convert --input {{dit_high_noise_lora}} --output {made} --target {target}"
    assert run(capsys, files, words)[0] == 0
    with safe_open(str(made), "pt") as file:
        assert file.metadata()[DENOISER] == HIGH
    code, said = run(capsys, files, MERGE + f" --dit {{dit}} --lora_weight {made}")
    assert code == 2 and "was trained for the dit_high_noise" in said


def test_a_file_that_says_nothing_goes_anywhere(capsys, files):
    said = {"ss_base_model_version": "wan"}
    tensors = load_file(files["dit_lora"])
    save_file(tensors, files["folder"] / "silent.safetensors", metadata=said)
    for expert in ("dit", HIGH):
        words = MERGE + f" --{expert} {{{expert}}} --lora_weight {{folder}}/silent.safetensors"
        assert run(capsys, files, words)[0] == 0
