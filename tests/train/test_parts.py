"""The parts of the loop: batches into steps, seeds, metrics, states, timesteps, the update."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, MissingPackageError, RunError
from musubi.plugin import Quiet
from musubi.train import loader, log, seeds, state, timesteps
from musubi.train.checkpoints import Names
from musubi.train.step import without_caption
from musubi.train.update import Update

BATCHES = [[i] for i in range(7)]


def test_steps_share_an_epoch_between_processes() -> None:
    one = list(loader.steps_of(BATCHES, accumulation=4))
    assert [[m.indices[0] for m in s.micros] for s in one] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [(s.total, s.end) for s in one] == [(4, 4), (3, 7)]
    two = [list(loader.steps_of(BATCHES, accumulation=2, rank=r, world=2)) for r in (0, 1)]
    for step, (a, b) in enumerate(zip(*two, strict=True)):
        together = sorted((*a.micros, *b.micros), key=lambda m: m.number)
        assert tuple(together) == one[step].micros
        assert a.total == b.total == one[step].total
    assert len(two[0]) == loader.steps_per_epoch(7, 2, 2) == 2


def test_steps_go_on_in_the_middle_of_an_epoch() -> None:
    rest = list(loader.steps_of(BATCHES, accumulation=2, start=4))
    assert [[m.indices[0] for m in s.micros] for s in rest] == [[4, 5], [6]]


def test_who_is_held_back_depends_on_its_key_alone() -> None:
    keys = [f"clip{i // 2}" for i in range(200)]  # two clips of each of 100 videos
    training, held = loader.split(keys, 0.1)
    assert 4 <= len(held) // 2 <= 18
    assert {keys[i] for i in held}.isdisjoint({keys[i] for i in training})
    fewer, still = loader.split(keys[:100], 0.1)
    assert {keys[i] for i in still} - {min({keys[i] for i in still})} <= {keys[i] for i in held} | {
        keys[i] for i in still[:2]
    }
    assert len(fewer) + len(still) == 100
    assert len({keys[i] for i in loader.split(keys, 3)[1]}) == 3
    assert loader.split(keys, 0) == (list(range(200)), [])
    assert loader.split(["a"], 0.5) == ([0], [])
    assert len(loader.split(["a", "b"], 2)[0]) == 1


def test_generators_go_back_to_where_they_were() -> None:
    seeds.seed_everything(5)
    kept = seeds.capture()

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first = draw()
    assert draw() != first
    seeds.restore(kept)
    assert draw() == first


def test_seeds_differ_by_place() -> None:
    made = {seeds.derive(s, kind, n) for s in range(3) for kind in ("a", "b") for n in range(9)}
    assert len(made) == 54
    assert all(0 <= seed < 2**63 for seed in made)


def test_captions_are_dropped_at_their_rate() -> None:
    dropped = [d for seed in range(400) for d in without_caption(0.25, 4, seed)]
    assert 0.2 < sum(dropped) / len(dropped) < 0.3
    assert without_caption(0.0, 3, 1) == [False] * 3
    assert without_caption(1.0, 3, 1) == [True] * 3


def test_metrics_keep_what_the_state_knows(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    metrics = log.Metrics(path)
    metrics.start(0)
    for step in (1, 2, 3):
        metrics.write({"step": step, "loss/current": step})
        metrics.write({"step": step, "loss/validation": step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    log.Metrics(path).start(2)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["step"], "loss/current" in e) for e in kept] == [(1, True), (1, False), (2, True)]
    log.Metrics(path).start(0)
    assert path.read_text() == ""


def test_trackers_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert log.trackers(TrainConfig(log_with="none")) == []
    monkeypatch.setattr(log, "_installed", lambda name: False)
    assert log.trackers(TrainConfig()) == []
    with pytest.raises(MissingPackageError, match=r"pip install musubi-diffusion\[wandb\]"):
        log.trackers(TrainConfig(log_with="wandb"))


def test_tracker_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "trackers.toml"
    path.write_text('[wandb]\nentity = "me"\n', encoding="utf-8")
    options = TrainConfig(log_tracker_config=str(path), wandb_run_name="cat")
    assert log.tracker_arguments(options, step=5) == {
        "wandb": {"entity": "me", "name": "cat"},
        "tensorboard": {"purge_step": 6},
    }
    path.write_text('entity = "me"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="stands in no table"):
        log.tracker_arguments(options, step=0)


def test_secrets_are_not_sent() -> None:
    sent = log.plain(
        {"wandb_api_key": "x", "huggingface_token": "y", "seed": 1, "a": None, "b": [1]}
    )
    assert sent == {"seed": 1, "b": "[1]"}


def example(step: int) -> state.State:
    return state.State(
        position=state.Position(step=step, epoch=1, batch=2, window=[0.5]),
        identity={"architecture": "toy", "rank": 4},
        settings={"learning_rate": 1e-4},
        data="digest",
        weights={"a": torch.arange(3.0)},
        parts={"optimizer": {"state": {0: {"exp": torch.ones(2)}}, "param_groups": [{"lr": 1}]}},
        random=seeds.capture(),
    )


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "toy-state"
    state.write(folder, example(3))
    state.write(folder, example(4))  # over the first
    found = state.read(folder)
    assert found.position == example(4).position
    assert torch.equal(found.weights["a"], torch.arange(3.0))
    assert torch.equal(found.parts["optimizer"]["state"][0]["exp"], torch.ones(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy-state"]


def test_auto_finds_the_newest_complete_state(tmp_path: Path) -> None:
    names = Names(tmp_path, "toy")
    assert state.find(names, "auto") is None
    state.write(tmp_path / "toy-000001-state", example(4))
    state.write(tmp_path / "toy-step00000007-state", example(7))
    state.write(tmp_path / "toy2-step00000090-state", example(90))
    state.write(tmp_path / "toy-step00000009-state", example(9))
    (tmp_path / "toy-step00000009-state" / "state.json").unlink()
    assert state.find(names, "auto") == tmp_path / "toy-step00000007-state"
    # killed between the two renames of a replacement
    (tmp_path / "toy-step00000007-state").rename(tmp_path / ".toy-step00000007-state.12.old")
    assert state.find(names, "auto") == tmp_path / ".toy-step00000007-state.12.old"


def test_states_of_other_runs_are_refused(tmp_path: Path) -> None:
    found = example(3)
    with pytest.raises(ConfigError, match="rank 4, and this run has 8"):
        state.check(found, {"architecture": "toy", "rank": 8}, {"a": torch.ones(2)}, tmp_path)
    with pytest.raises(ConfigError, match="trains other modules than this run, such as 'b'"):
        state.check(found, {"rank": 4}, {"a": torch.ones(2), "b": torch.ones(2)}, tmp_path)
    assert state.changed(found, {"learning_rate": 2e-4}, ["learning_rate", "optimizer_type"]) == [
        "--learning_rate 0.0002 is not used: a run that goes on keeps 0.0001, which its state says. "
        "To change --learning_rate, start a new run with --network_weights."
    ]


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    names = Names(tmp_path, "toy")
    with pytest.raises(ConfigError, match="absent is not the state of a run"):
        state.find(names, str(tmp_path / "absent"))
    old = tmp_path / "old-state"
    old.mkdir()
    (old / "optimizer.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="--network_weights"):
        state.read(old)
    state.write(tmp_path / "toy-state", example(1))
    (tmp_path / "toy-state" / "optimizer.pt").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="is broken"):
        state.read(tmp_path / "toy-state")


def test_a_state_with_code_in_it_is_refused(tmp_path: Path) -> None:
    state.write(tmp_path / "toy-state", example(1))
    torch.save({"optimizer": Names(tmp_path, "x")}, tmp_path / "toy-state" / "optimizer.pt")
    with pytest.raises(ConfigError, match="is broken"):
        state.read(tmp_path / "toy-state")


def test_a_state_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.write(tmp_path / "toy-state", example(1))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "_save_pickled", full)
    with pytest.raises(RunError, match=r"was not saved: .*the disk is full"):
        state.write(tmp_path / "toy-state", example(2))
    assert state.read(tmp_path / "toy-state").position.step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["toy-state"]


@pytest.mark.parametrize("mode", ["sigma", "uniform", "sigmoid", "shift", "logsnr", "flux_shift"])
def test_the_distribution_of_timesteps(mode: str) -> None:
    options = TrainConfig(timestep_sampling=mode, discrete_flow_shift=3.0, min_timestep=500)
    shares, weights = timesteps.histogram(options)
    assert sum(shares) == pytest.approx(100)
    assert sum(shares[:24]) == 0
    assert len(weights) == len(shares)


def test_timesteps_are_shown(tmp_path: Path) -> None:
    report = Quiet()
    timesteps.show(TrainConfig(show_timesteps="console"), tmp_path / "a.png", report)
    assert len(report.notes) == 51 and "█" in report.notes[5]
    timesteps.show(TrainConfig(show_timesteps="image"), tmp_path / "sub" / "a.png", report)
    with Image.open(tmp_path / "sub" / "a.png") as image:
        assert image.size == (900, 420)
        assert len(image.getcolors(maxcolors=100000) or ()) > 3


def test_clipping_and_the_norm() -> None:
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([p], lr=1.0)
    still = type("S", (), {"step": lambda self: None})()
    for limit, moved in ((1.0, 0.5), (0.0, 2.0)):
        with torch.no_grad():
            p.zero_()
        update = Update([p], optimizer, still, None, limit)
        update.backward((p * 2).sum())
        assert float(update.step()) == pytest.approx(4.0)
        assert torch.allclose(p.detach(), torch.full((4,), -moved), atol=1e-4)
        assert p.grad is None


def test_float16_skips_a_step_that_overflows() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=1.0)
    steps: list[int] = []
    still = type("S", (), {"step": lambda self: steps.append(1)})()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    update = Update([p], optimizer, still, scaler, 1.0)
    update.backward((p * float("inf")).sum())
    update.step()
    assert torch.equal(p.detach(), torch.ones(2)) and not steps
    update.backward((p * 0.25).sum())
    update.step()
    assert torch.allclose(p.detach(), torch.full((2,), 0.75)) and steps == [1]
