"""`musubi train` put together, on a toy architecture with its checkpoint on disk."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from musubi.errors import ConfigError, RunError
from musubi.pages import columns


def told(out: Path) -> list[dict]:
    lines = (out / "cat" / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), "pt") as file:
        return dict(file.metadata() or {})


def test_the_whole_network_is_trained_and_saved(toy) -> None:
    out = toy.train(full=True, save_precision="fp32", gradient_checkpointing=True)
    before, after = load_file(toy.folder / "dit.safetensors"), load_file(out / "cat.safetensors")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[n], after[n]) for n in before)
    assert [entry["step"] for entry in told(out)] == [1, 2, 3, 4]
    said = metadata(out / "cat.safetensors")
    assert said["ss_base_model_version"] == "toy"
    assert said["ss_steps"] == "4" and said["ss_epoch"] == "1"
    assert said["modelspec.architecture"] == "toy"
    assert json.loads(said["ss_datasets"])[0]["image_directory"] == "cats"


def test_bf16_is_the_default_of_files(toy) -> None:
    out = toy.train(full=True)
    assert load_file(out / "cat.safetensors")["first.weight"].dtype == torch.bfloat16


def test_the_saved_config_holds_what_was_used(toy) -> None:
    out = toy.train(full=True, seed=None, wandb_api_key="secret", resume="auto")
    text = (out / "cat" / "config.toml").read_text("utf-8")
    assert 'arch = "toy"' in text
    assert "seed = " in text
    assert "secret" not in text and "resume = " not in text


@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
def test_resuming_continues_exactly(toy, full: bool) -> None:
    calm = toy.train(full=full, max_train_steps=6, output_name="calm")
    out = toy.train(full=full, max_train_steps=3, save_state=True)
    toy.train(full=full, max_train_steps=6, resume="auto")
    ours, theirs = load_file(out / "cat.safetensors"), load_file(calm / "calm.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert columns.learned(told(out)) == columns.learned(
        columns.read(out / "calm" / "metrics.jsonl")
    )
    assert any("Going on from" in note and "after step 3" in note for note in toy.report.notes)


def test_a_changed_dataset_restarts_its_epoch(toy) -> None:
    toy.train(full=True, max_train_steps=3, save_state=True)
    toy.records = type(toy.records)(9)
    out = toy.train(full=True, max_train_steps=8, resume="auto")
    assert any("its epoch starts again" in w for w in toy.report.warnings)
    assert [(e["step"], e["epoch"]) for e in told(out)][3:] == [(n, 1) for n in range(4, 9)]


def test_a_state_of_something_else_is_refused(toy) -> None:
    toy.train(full=True, save_state=True)
    with pytest.raises(ConfigError, match="optimizer 'adamw', and this run has 'sgd'"):
        toy.train(full=True, resume="auto", optimizer_type="sgd")
    with pytest.raises(ConfigError, match="kind 'full', and this run has 'lora'"):
        toy.train(resume="auto")
    toy.train(full=True, resume="auto", learning_rate=1e-3, max_train_steps=5)
    assert any("a run that goes on keeps 0.01" in w for w in toy.report.warnings)


def test_nothing_to_go_on_from_starts_anew(toy) -> None:
    toy.train(full=True, resume="auto")
    assert any("starts from the beginning" in note for note in toy.report.notes)


def test_a_folder_that_is_a_file_is_refused_before_anything_loads(toy) -> None:
    (toy.folder / "out").write_text("")
    with pytest.raises(RunError, match=r"out.*cannot be written"):
        toy.train(full=True)


def test_no_checkpoint_given(toy) -> None:
    with pytest.raises(ConfigError, match="The dit of Toy is needed"):
        toy.train(dit=None)


def test_timesteps_are_shown_without_training(toy) -> None:
    out = toy.train(show_timesteps="image", dit=None)
    assert (out / "cat" / "timesteps.png").exists()
    assert not (out / "cat.safetensors").exists()


def test_held_back_items_are_measured(toy) -> None:
    out = toy.train(full=True, validation_split=2, validate_every_n_steps=2)
    assert [e["step"] for e in told(out) if "loss/validation" in e] == [0, 2, 4]
    assert {i for batch in toy.records.seen for i in batch} == set(range(7))


def test_tensorboard_gets_the_known_names(toy) -> None:
    pytest.importorskip("tensorboard")
    out = toy.train(full=True, log_with="tensorboard", log_config=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "cat" / "network_train"))
    events.Reload()
    assert {"loss/current", "loss/average", "lr/unet"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss/current")] == [1, 2, 3, 4]


def test_half_precision_weights_compute_in_it(toy) -> None:
    out = toy.train(full=True, dit_dtype="bf16")
    assert any("bfloat16, and so it computes" in note for note in toy.report.notes)
    assert len(told(out)) == 4


def test_runs_of_one_python_process_may_differ_in_precision(toy) -> None:
    for precision in ("bf16", "no"):
        out = toy.train(full=True, mixed_precision=precision)
        assert len(told(out)) == 4
