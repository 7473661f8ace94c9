"""`--find_lr` on the toy: every rate does what a run of that rate does, and one is proposed."""

import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from musubi.errors import ConfigError, StoppedError
from musubi.train import rate_sweep
from musubi.train.rate_sweep import FACTORS, SweptRates, picture, sweep

STEPS = 4


@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
def test_each_rate_trains_as_a_run_of_it(toy, full, monkeypatch) -> None:
    seen = []
    real = rate_sweep._measured

    def watched(run, update):
        loss = real(run, update)
        seen.append(({n: t.clone() for n, t in run.trainable.tensors().items()}, loss))
        return loss

    monkeypatch.setattr(rate_sweep, "_measured", watched)
    out = toy.train(full=full, find_lr=True, find_lr_steps=STEPS, output_name="sweep")
    assert [p.name for p in (out / "sweep").iterdir()] == [rate_sweep.PICTURE]
    assert not list(out.glob("*.safetensors"))
    with Image.open(out / "sweep" / rate_sweep.PICTURE) as drawn:
        assert drawn.size == (900, 420)
    assert len(seen) == 1 + len(FACTORS) and len({loss for _, loss in seen}) == len(seen)
    if not full:
        return
    for factor, (weights, _) in zip(FACTORS, seen[1:], strict=True):
        toy.train(
            full=True, learning_rate=0.01 * factor, max_train_steps=STEPS, save_precision="fp32"
        )
        trained = load_file(out / "cat.safetensors")
        assert all(torch.equal(trained[n], t) for n, t in weights.items())


@pytest.mark.parametrize("optimizer", ["schedulefree", "muon", "adafactor", "lion"])
def test_other_optimizers(toy, optimizer) -> None:
    pytest.importorskip("schedulefree")
    toy.train(
        full=True, find_lr=True, find_lr_steps=2, optimizer_type=optimizer, learning_rate=None
    )
    assert any("learning_rate" in note for note in toy.report.notes)


def test_an_optimizer_with_a_rate_of_its_own_is_refused(toy) -> None:
    pytest.importorskip("prodigyopt")
    with pytest.raises(ConfigError, match="chooses its own rate"):
        toy.train(find_lr=True, optimizer_type="prodigyopt.Prodigy")


def test_afterwards_the_weights_are_what_they_were(world, tmp_path, weights) -> None:
    run = world.make(tmp_path, max_train_steps=2)
    before = weights(run)

    def with_rate(rate):
        return world.make(tmp_path, learning_rate=rate).update

    sweep(run, with_rate, run.report)
    assert all(torch.equal(before[n], t) for n, t in weights(run).items())
    run.stop = type("Stop", (), {"requested": True})()
    with pytest.raises(StoppedError):
        sweep(run, with_rate, run.report)


def found(*losses, before=1.0):
    rates = tuple(10.0 ** -(len(losses) - i) for i in range(len(losses)))
    return SweptRates(rates=rates, losses=losses, before=before, steps=20)


@pytest.mark.parametrize(
    ("losses", "best", "proposal"),
    [
        ((0.99, 0.9, 0.8, math.inf), 2, 1e-3),
        ((0.99, 0.9, 0.8, 0.7), 3, None),
        ((0.5, 0.9, 2.0), 0, None),
        ((1.0, 1.5, math.inf), None, None),
        ((math.inf, math.inf, math.inf), None, None),
    ],
)
def test_the_proposal_is_one_below_the_best(losses, best, proposal) -> None:
    it = found(*losses)
    assert it.best == best and it.proposal == (
        None if proposal is None else pytest.approx(proposal)
    )
    assert picture(it).getcolors(1 << 20)
