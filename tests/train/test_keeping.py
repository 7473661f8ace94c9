"""What a run keeps: any optimizer's state, the average, the best, named epochs, by the clock, early ends."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from musubi.errors import ConfigError
from musubi.train import state
from musubi.train.checkpoints import Names

OPTIMIZERS = {
    "adamw8bit": {"optimizer_type": "adamw8bit"},
    "adamw4bit": {"optimizer_type": "adamw4bit"},
    "adafactor": {"optimizer_type": "adafactor"},
    "adafactor with its own rate": {"optimizer_type": "adafactor", "learning_rate": None},
    "lion": {"optimizer_type": "lion"},
    "lion8bit": {"optimizer_type": "lion8bit"},
    "came": {"optimizer_type": "came"},
    "muon": {"optimizer_type": "muon"},
    "prodigy": {"optimizer_type": "prodigy", "learning_rate": None},
    "prodigyplus": {"optimizer_type": "prodigyplus", "learning_rate": None},
    "schedulefree": {"optimizer_type": "schedulefree"},
    "by its path": {"optimizer_type": "torch.optim.RAdam"},
    "with an average": {"ema_decay": 0.9},
    "schedulefree on the host": {"optimizer_type": "schedulefree", "optimizer_offload": True},
    "an average on the host": {"ema_decay": 0.9, "optimizer_offload": True},
}
PACKAGES = {
    "adamw8bit": "bitsandbytes",
    "lion8bit": "bitsandbytes",
    "prodigy": "prodigyopt",
    "prodigyplus": "prodigyplus",
    "schedulefree": "schedulefree",
}


def cut_after(toy, name: str, step: int) -> None:
    """Leave of a run what there was after a step."""
    out = toy.folder / "out"
    kept = f"{name}-step{step:08d}"
    for path in [
        *out.glob(f"{name}-step*"),
        out / f"{name}-state",
        *out.glob(f"{name}*.safetensors"),
    ]:
        if not path.name.startswith(kept) and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("what", ["lora", "full", "full in bf16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_that_goes_on_ends_where_the_whole_one_ends(toy, name, what) -> None:
    options = {"save_precision": "fp32", "max_train_steps": 6, **OPTIMIZERS[name]}
    pytest.importorskip(PACKAGES.get(options.get("optimizer_type"), "torch"))
    if what == "lora":
        options["network_dim"] = 4
    else:
        options["full"] = True
    if what == "full in bf16":
        options["dit_dtype"] = "bfloat16"
        kind = options.get("optimizer_type", "adamw")
        options["stochastic_rounding"] = not kind.startswith(("prodigy", "schedulefree"))
    whole = toy.train(output_name="whole", **options) / "whole.safetensors"
    saving = {"save_every_n_steps": 2, "save_state": True}  # which must leave no trace
    toy.train(output_name="part", **options, **saving)
    cut_after(toy, "part", 4)
    toy.report.notes.clear()
    toy.train(output_name="part", resume="auto", **options, **saving)
    assert any("after step 4" in note for note in toy.report.notes)
    for ending in ("", "_ema") if "ema_decay" in options else ("",):
        one = load_file(whole.with_name(f"whole{ending}.safetensors"))
        other = load_file(whole.with_name(f"part{ending}.safetensors"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[n], other[n]) for n in one)


def test_a_given_rate_acts_in_adafactor_and_else_its_own_does(toy) -> None:
    def moved(**options) -> torch.Tensor:
        options = {"optimizer_type": "adafactor", "full": True, "save_precision": "fp32", **options}
        out = toy.train(max_train_steps=1, **options) / "cat.safetensors"
        start = load_file(toy.folder / "dit.safetensors")
        return torch.cat([(t - start[n]).flatten() for n, t in load_file(out).items()])

    small, large = moved(learning_rate=1e-4).norm(), moved(learning_rate=1e-3).norm()
    assert large / small == pytest.approx(10, rel=1e-2)
    own = moved(learning_rate=None)
    asked = moved(optimizer_args=["relative_step=True"])
    assert torch.equal(own, asked)
    assert any("does not act" in line for line in toy.report.warnings)


@pytest.mark.parametrize("kind", ["prodigy", "prodigyplus", "lion"])
def test_rates_that_are_not_given_suit_the_optimizer(toy, kind) -> None:
    pytest.importorskip(PACKAGES.get(kind, "torch"))
    from musubi.config.train import TrainConfig

    rate = TrainConfig(optimizer_type=kind).learning_rate_or_default
    assert rate == (1.0 if kind != "lion" else pytest.approx(1e-4 / 3))


def test_stochastic_rounding_moves_what_rounding_leaves(toy) -> None:
    options = {"full": True, "dit_dtype": "bfloat16", "save_precision": "fp32"}
    options |= {
        "learning_rate": 1e-6,
        "optimizer_type": "adamw",
        "optimizer_args": ["weight_decay=0.0"],
    }
    start = {n: t.bfloat16().float() for n, t in load_file(toy.folder / "dit.safetensors").items()}
    still, moved = (
        load_file(toy.train(stochastic_rounding=by_chance, **options) / "cat.safetensors")
        for by_chance in (False, True)
    )
    large = {n: t for n, t in start.items() if n == "first.weight"}
    assert all(torch.equal(still[n], t) for n, t in large.items())
    assert any(not torch.equal(moved[n], t) for n, t in start.items())


def test_stochastic_rounding_is_right_on_average() -> None:
    from musubi.train.rounding import rounded
    from musubi.train.seeds import generator

    value = torch.full((40000,), 1 + 2**-9)  # a quarter of the way to the next bfloat16
    found = rounded(value, generator(torch.device("cpu"), 1, "rounding")).float()
    assert set(found.tolist()) == {1.0, 1 + 2**-7}
    assert found.mean() == pytest.approx(1 + 2**-9, abs=1e-4)
    odd = torch.tensor([float("inf"), -float("inf"), 0.0, 1.0, -2.5])
    assert torch.equal(rounded(odd, generator(torch.device("cpu"), 1, "x")).float(), odd)


def test_the_average_is_that_of_the_saved_weights(toy) -> None:
    options = {"save_precision": "fp32", "network_dim": 2, "save_every_n_steps": 1}
    out = toy.train(ema_decay=0.15, **options)  # the first steps keep (1 + n) / (10 + n)
    first, second = (load_file(out / f"cat-step0000000{n}.safetensors") for n in (1, 2))
    means = [load_file(out / f"cat-step0000000{n}_ema.safetensors") for n in (1, 2)]
    for name in first:
        expected = means[0][name] * 0.15 + second[name] * 0.85
        torch.testing.assert_close(means[1][name], expected)


def test_previews_are_drawn_and_validation_is_measured_with_the_average(toy) -> None:
    said = {}
    for name, more in (
        ("plain", {}),
        ("average", {"ema_decay": 0.99}),
        ("not", {"ema_decay": 0.99, "ema_previews": False}),
    ):
        toy.report.notes.clear()
        toy.train(output_name=name, validation_split=2, network_dim=2, learning_rate=0.3, **more)
        said[name] = [n.partition(" after")[0] for n in toy.report.notes if "Validation" in n]
    assert said["plain"] == said["not"] != said["average"]


def test_the_best_checkpoint_is_kept_and_a_run_ends_early(toy) -> None:
    options = {"validation_split": 2, "validate_every_n_steps": 1, "save_every_n_steps": 1}
    options |= {"save_best": "validation", "early_stop": 3, "save_precision": "fp32", "full": True}
    options |= {"learning_rate": 0.3, "max_train_steps": 40, "save_state": True}
    out = toy.train(**options)
    (ended,) = [note for note in toy.report.notes if "Stopped early" in note]
    best = int(ended.rpartition("step ")[2].rstrip("."))
    last = max(n for n, _ in Names(out, "cat").numbered("step", ".safetensors"))
    assert last == best + 3 < 40
    kept, then = (
        load_file(out / n) for n in ("cat-best.safetensors", f"cat-step{best:08d}.safetensors")
    )
    assert all(torch.equal(kept[n], then[n]) for n in kept)
    final = load_file(out / "cat.safetensors")
    assert state.read(out / "cat-state").position.worse == 3
    # Again from a state before the end, and from the end itself.
    cut_after(toy, "cat", last - 1)
    toy.train(resume="auto", **options)
    assert all(torch.equal(load_file(out / "cat.safetensors")[n], final[n]) for n in final)
    assert (
        all(torch.equal(load_file(out / "cat-best.safetensors")[n], kept[n]) for n in kept)
        if (last - 1 < best)
        else True
    )
    toy.report.notes.clear()
    toy.train(resume="auto", **options)
    assert any("The run is complete" in note for note in toy.report.notes)


def test_named_epochs_stay(toy) -> None:
    out = toy.train(
        max_train_epochs=6, keep_epochs=[2, 3], save_every_n_epochs=2, save_last_n_epochs=1
    )
    found = sorted(n for n, _ in Names(out, "cat").numbered("epoch", ".safetensors"))
    assert found == [2, 3, 4]


def test_minutes_save(toy) -> None:
    out = toy.train(save_every_n_minutes=1e-9, save_state=True, max_train_steps=5)
    found = sorted(n for n, _ in Names(out, "cat").numbered("step", ".safetensors"))
    assert found and set(found) <= {
        2,
        3,
        4,
    }  # the clock is read with the figures of the step before
    out = toy.train(output_name="b", save_every_n_minutes=1e9)
    assert not list(Names(out, "b").numbered("step", ".safetensors"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"save_best": "validation"}, "none are"),
        ({"early_stop": 2}, "none are"),
        ({"ema_previews": False}, "without an average"),
        ({"ema_decay": 0.9, "optimizer_type": "schedulefree"}, "averages the weights itself"),
        ({"stochastic_rounding": True}, "all that is trained is in float32"),
        ({"stochastic_rounding": True, "mixed_precision": "fp16"}, "fp16"),
        (
            {
                "stochastic_rounding": True,
                "full": True,
                "dit_dtype": "bfloat16",
                "optimizer_type": "schedulefree",
            },
            "all of them at once",
        ),
    ],
)
def test_contradictions_are_refused_in_a_sentence(toy, options, sentence) -> None:
    with pytest.raises(Exception, match=sentence):
        toy.train(**options)


def test_an_average_is_not_begun_in_the_middle(toy) -> None:
    toy.train(save_state_on_train_end=True, max_train_steps=2)
    with pytest.raises(ConfigError, match="ema_decay"):
        toy.train(resume="auto", ema_decay=0.9)


def test_an_average_that_is_left_behind_is_told_of(toy) -> None:
    toy.train(ema_decay=0.9, save_state_on_train_end=True, max_train_steps=2)
    toy.train(resume="auto", max_train_steps=3)
    assert any(
        "average of the weights" in w and "--ema_decay 0.9" in w for w in toy.report.warnings
    )


@pytest.mark.parametrize("name", ["adamw", "adamw4bit", "came", "muon", "lion", "adafactor"])
def test_a_state_of_another_shape_is_refused(toy, name) -> None:
    options = {"optimizer_type": name, "full": True, "save_state_on_train_end": True}
    out = toy.train(max_train_steps=2, **options)
    held = state.read(out / "cat-state")
    states = held.parts["optimizer"]["state"]

    def spoil(entry) -> bool:
        for key, value in entry.items():
            if isinstance(value, dict) and spoil(value):
                return True
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                entry[key] = torch.cat([value.flatten(), value.flatten()[:1]])
                return True
        return False

    assert spoil(states[0])
    state.write(out / "cat-state", held)
    with pytest.raises(ConfigError, match="has the shape"):
        toy.train(resume="auto", max_train_steps=4, **options)
    held.parts["optimizer"]["state"][0].clear()
    state.write(out / "cat-state", held)
    with pytest.raises(ConfigError, match="lacks"):
        toy.train(resume="auto", max_train_steps=4, **options)
