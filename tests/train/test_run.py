"""The loop: exact resume, accumulation, saving, stopping, bad numbers."""

import json
import signal
from pathlib import Path

import pytest
import torch

from musubi.errors import RunError, StoppedError
from musubi.pages import columns
from musubi.plugin import Quiet
from musubi.train.signals import Stop
from musubi.train.train_loop import Processes


def lines(folder: Path) -> list[dict]:
    text = (folder / "toy" / "metrics.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def optimizer_of(run) -> dict:
    def flat(prefix: str, value) -> dict:
        if isinstance(value, dict):  # bitsandbytes nests its state
            return {k: v for n, x in value.items() for k, v in flat(f"{prefix}.{n}", x).items()}
        return {prefix: torch.as_tensor(value)}

    return flat("", run.update.optimizer.state_dict()["state"])


@pytest.mark.parametrize("killed_at", [2, 4, 6, 7])
@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.2, "caption_dropout_rate": 0.3, "lr_scheduler": "cosine"},
        {"gradient_accumulation_steps": 3, "held": 2, "validate_every_n_steps": 3},
        {"optimizer_type": "schedulefree", "max_data_loader_n_workers": 2},
        {"optimizer_type": "adafactor"},
        {"optimizer_type": "adamw8bit"},
    ],
    ids=["dropout", "accumulation", "schedulefree", "adafactor", "adamw8bit"],
)
def test_a_killed_run_ends_where_the_undisturbed_one_ends(
    world, weights, tmp_path: Path, killed_at: int, options: dict
) -> None:
    if options.get("optimizer_type") == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    options = {"save_every_n_steps": 3, "save_state": True, **options}
    calm = world.make(tmp_path / "calm", **options)
    calm.train()

    dying = world.make(tmp_path / "killed", **options)
    step = dying.objective.training_loss

    def dies(batch, number: int, micro: int) -> torch.Tensor:
        if number == killed_at:
            raise world.KilledError
        return step(batch, number, micro)

    object.__setattr__(dying.objective, "training_loss", dies)
    with pytest.raises(world.KilledError):
        dying.train()
    torch.rand(3)  # whatever another process did to the generators
    resumed = world.make(tmp_path / "killed", resume="auto", **options)
    assert resumed.position.step == (killed_at - 1) // 3 * 3
    resumed.train()

    assert same(weights(calm), weights(resumed))
    assert same(optimizer_of(calm), optimizer_of(resumed))
    metrics = [
        columns.learned(columns.read(tmp_path / name / "toy" / "metrics.jsonl"))
        for name in ("calm", "killed")
    ]
    assert metrics[0] == metrics[1]
    assert len([line for line in metrics[0] if columns.LOSS.key in line]) == calm.total
    finals = [tmp_path / name / "toy.safetensors" for name in ("calm", "killed")]
    assert finals[0].read_bytes() == finals[1].read_bytes()


def test_every_step_says_what_it_took(world, tmp_path: Path) -> None:
    run = world.make(tmp_path, max_train_steps=3)
    run.train()
    for line in columns.read(tmp_path / "toy" / "metrics.jsonl"):
        assert set(line) - {"step", "epoch"} <= {c.key for c in columns.COLUMNS}
        assert 0 < line["seconds"] < 60 and 0 < line["memory/host"] < 1000
        assert line["tokens"] in (
            1,
            2,
        )  # 1 x 2 x 2 cells are one token; the last batch has one item
        assert columns.MEASURED.isdisjoint(columns.learned([line])[0])


def test_the_loss_falls_and_every_step_is_told(world, tmp_path: Path) -> None:
    run = world.make(tmp_path, max_train_steps=60)
    run.train()
    told = lines(tmp_path)
    assert [entry["step"] for entry in told] == list(range(1, 61))
    assert [entry["epoch"] for entry in told[:9]] == [1] * 4 + [2] * 4 + [3]
    assert told[-1]["loss/average"] < told[3]["loss/average"]
    assert set(columns.learned(told)[0]) == {
        *("step", "epoch", "loss/current", "loss/average", "lr/unet", "grad_norm", "tokens")
    }


def test_an_epoch_visits_every_item_once(world, tmp_path: Path) -> None:
    records = world.Records(7)
    world.make(tmp_path, records=records, max_train_steps=4, max_data_loader_n_workers=2).train()
    assert sorted(i for batch in records.seen[:4] for i in batch) == list(range(7))


def test_two_processes_equal_accumulation_on_one(world, weights, tmp_path: Path) -> None:
    """The processes run as threads that meet in a sum; the real ones are in test_processes."""
    import threading

    alone = world.make(tmp_path / "one", gradient_accumulation_steps=2, max_train_steps=6)
    alone.train()
    meeting = threading.Barrier(2)
    parts: dict[int, torch.Tensor] = {}

    def total(rank: int):
        def add(tensor: torch.Tensor) -> torch.Tensor:
            parts[rank] = tensor
            meeting.wait()
            out = parts[0] + parts[1]
            meeting.wait()
            return out

        return add

    runs = [
        world.make(
            tmp_path / "two",
            max_train_steps=6,
            processes=Processes(rank=r, world=2, step_total=total(r)),
        )
        for r in range(2)
    ]
    threads = [threading.Thread(target=run.train) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert same(weights(runs[0]), weights(runs[1]))
    assert same(weights(alone), weights(runs[0]))
    told = [columns.learned(lines(tmp_path / name)) for name in ("one", "two")]
    for a, b in zip(*told, strict=True):
        assert a == pytest.approx(b)


def test_checkpoints_have_the_old_names_and_are_retained(world, tmp_path: Path) -> None:
    run = world.make(
        tmp_path,
        max_train_steps=10,
        save_every_n_steps=2,
        save_last_n_steps=4,
        save_state=True,
        save_last_n_steps_state=0,
        save_every_n_epochs=1,
        save_last_n_epochs=1,
    )
    run.train()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "toy") == [
        "toy-000002-state",
        "toy-000002.safetensors",
        "toy-state",
        "toy-step00000006.safetensors",
        "toy-step00000008.safetensors",
        "toy-step00000010-state",
        "toy-step00000010.safetensors",
        "toy.safetensors",
    ]


def test_the_last_epoch_has_no_checkpoint_of_its_own(world, tmp_path: Path) -> None:
    world.make(tmp_path, max_train_steps=4, save_every_n_epochs=1).train()
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["toy.safetensors"]


def test_a_full_disk_leaves_the_previous_checkpoint(
    world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from musubi.train import trainable

    real = trainable.save

    def full(path: Path, tensors: dict, metadata: dict) -> None:
        if "step00000004" in path.name:
            raise RunError(f"{path} could not be written: the disk is full.", fix="Make room.")
        real(path, tensors, metadata)

    monkeypatch.setattr(trainable, "save", full)
    run = world.make(tmp_path, save_every_n_steps=2, save_last_n_steps=0)
    with pytest.raises(RunError, match=r"toy-step00000002\.safetensors, is intact"):
        run.train()
    assert (tmp_path / "toy-step00000002.safetensors").exists()
    assert not (tmp_path / "toy-step00000004.safetensors").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves_the_state(
    world, weights, tmp_path: Path, how: signal.Signals
) -> None:
    calm = world.make(tmp_path / "calm")
    calm.train()
    report = Quiet()
    run = world.make(tmp_path / "stopped", report=report)
    loss = run.objective.training_loss

    def interrupted(batch, number: int, micro: int) -> torch.Tensor:
        if number == 3:
            signal.raise_signal(how)
        return loss(batch, number, micro)

    object.__setattr__(run.objective, "training_loss", interrupted)
    with pytest.raises(StoppedError, match="--resume auto") as stopped, Stop(report) as run.stop:
        run.train()
    assert stopped.value.exit_code == 130
    assert "after step 3 of 8" in str(stopped.value)
    assert any("Once more stops now" in note for note in report.notes)
    assert [p.name for p in (tmp_path / "stopped").iterdir() if p.name != "toy"] == [
        "toy-step00000003-state"
    ]
    resumed = world.make(tmp_path / "stopped", resume="auto")
    resumed.train()
    assert same(weights(calm), weights(resumed))
    told = [columns.learned(lines(tmp_path / name)) for name in ("calm", "stopped")]
    assert told[0] == told[1]


def test_a_second_signal_stops_now() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Stop(Quiet()) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_finite_names_the_items(world, tmp_path: Path) -> None:
    records = world.Records(7, bad=5)
    run = world.make(
        tmp_path,
        records=records,
        gradient_accumulation_steps=2,
        save_every_n_steps=1,
        save_state=True,
    )
    with pytest.raises(RunError, match=r"is not finite; its items: .*file5\.png") as error:
        run.train()
    batch = next(b for b in records.seen if 5 in b)
    others = {f"file{i}.png" for i in range(7)} - {f"file{i}.png" for i in batch}
    assert not any(name in str(error.value) for name in others)
    for path in tmp_path.glob("*.safetensors"):
        from safetensors.torch import load_file

        assert all(torch.isfinite(t).all() for t in load_file(path).values())


def test_validation_is_the_same_whatever_happens_between(world, tmp_path: Path) -> None:
    run = world.make(tmp_path, held=2, validate_every_n_steps=4, learning_rate=1e-30)
    run.train()
    found = [e["loss/validation"] for e in lines(tmp_path) if "loss/validation" in e]
    assert [e["step"] for e in lines(tmp_path) if "loss/validation" in e] == [0, 4, 8]
    assert found[0] == pytest.approx(found[1]) == pytest.approx(found[2])


def test_previews_leave_no_trace_and_come_after_the_checkpoint(
    world, weights, tmp_path: Path
) -> None:
    drawn: list[tuple[int, int | None, bool]] = []

    class Draw:
        def draw(self, *, step: int, epoch: int | None) -> None:
            torch.rand(7)
            saved = (tmp_path / "b" / f"toy-step{step:08d}.safetensors").exists()
            assert not run.trainable.dit.training
            drawn.append((step, epoch, saved))

    calm = world.make(tmp_path / "a", dropout=0.2)
    calm.train()
    run = world.make(
        tmp_path / "b",
        dropout=0.2,
        previews=Draw(),
        sample_every_n_steps=3,
        sample_at_first=True,
        sample_every_n_epochs=1,
        sample_prompts="p.txt",
        save_every_n_steps=3,
    )
    run.train()
    assert drawn == [
        (0, None, False),
        (3, None, True),
        (4, 1, False),
        (6, None, True),
        (8, 2, False),
    ]
    assert same(weights(calm), weights(run))


def test_a_finished_run_says_so(world, tmp_path: Path) -> None:
    world.make(tmp_path, save_state_on_train_end=True).train()
    report = Quiet()
    world.make(tmp_path, resume="auto", report=report).train()
    assert any("complete: 8 of 8" in note for note in report.notes)
