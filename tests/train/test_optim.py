import sys
import warnings

import pytest
import torch

from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, MissingPackageError
from musubi.train import optim, schedule


def groups() -> list[dict]:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(8, 8))
    p.grad = torch.randn(8, 8)
    return [{"params": [p]}]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", "AdamW"),
        ("AdamW", "AdamW"),
        ("sgd", "SGD"),
        ("RAdam", "RAdam"),
        ("torch.optim.Adamax", "Adamax"),
        ("adafactor", "Adafactor"),
        ("schedulefree", "AdamWScheduleFree"),
        ("schedulefree.RAdamScheduleFree", "RAdamScheduleFree"),
    ],
)
def test_known_names_train(name: str, kind: str) -> None:
    made = groups()
    before = made[0]["params"][0].detach().clone()
    optimizer = optim.create(name, made, lr=1e-2, arguments={})
    assert type(optimizer).__name__ == kind
    if optim.is_schedule_free(optimizer):
        optimizer.train()
    for _ in range(8):  # RAdam first waits
        optimizer.step()
    assert not torch.equal(before, made[0]["params"][0])


def test_8_bit_adamw_runs_here() -> None:
    pytest.importorskip("bitsandbytes")
    made = groups()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = optim.create("adamw8bit", made, lr=1e-2, arguments={})
        optimizer.step()
    assert type(optimizer).__name__ == "AdamW8bit"


def test_a_group_keeps_its_own_rate() -> None:
    made = [*groups(), {**groups()[0], "lr": 0.5}]
    optimizer = optim.create("adamw", made, lr=1e-2, arguments={"weight_decay": 0.1})
    assert [g["lr"] for g in optimizer.param_groups] == [1e-2, 0.5]
    assert optimizer.defaults["weight_decay"] == 0.1
    assert optim.describe(optimizer, {"weight_decay": 0.1}) == (
        "torch.optim.adamw.AdamW(weight_decay=0.1)"
    )


def test_adafactor_takes_a_rate_only_without_its_own() -> None:
    own = optim.create("adafactor", groups(), lr=1e-2, arguments={})
    assert optim.relative_step(own)
    assert own.param_groups[0]["lr"] is None
    fixed = optim.create("adafactor", groups(), lr=1e-2, arguments={"relative_step": False})
    assert fixed.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("adamw8bits", "Did you mean 'adamw8bit'?"),
        ("torch.optim.AdamV", "Did you mean 'Adam"),
        ("torch.nn.Linear", "is not an optimizer class"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")):
        optim.create(name, groups(), lr=1e-2, arguments={})


def test_a_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(MissingPackageError, match="pip install schedulefree"):
        optim.find("schedulefree")
    with pytest.raises(MissingPackageError, match="pip install prodigyopt_absent"):
        optim.find("prodigyopt_absent.Prodigy")


def test_an_unknown_argument_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'weight_decay'"):
        optim.create("adamw", groups(), lr=1e-2, arguments={"weight_decai": 0.1})
    with pytest.raises(ConfigError, match="adamw cannot be used"):
        optim.create("adamw", groups(), lr=1e-2, arguments={"eps": -1.0})


def factors(total: int = 10, **options: object) -> list[float]:
    made = schedule.factor(TrainConfig(**options), total)
    return [round(made(step), 4) for step in range(total + 1)]


def test_schedules() -> None:
    assert factors(lr_scheduler="constant") == [1.0] * 11
    assert factors(4, lr_scheduler="constant_with_warmup", lr_warmup_steps=2) == [0, 0.5, 1, 1, 1]
    assert factors(4, lr_scheduler="linear") == [1, 0.75, 0.5, 0.25, 0]
    assert factors(4, lr_scheduler="linear", lr_warmup_steps="50%") == [0, 0.5, 1, 0.5, 0]
    assert factors(4, lr_scheduler="cosine") == [1, 0.8536, 0.5, 0.1464, 0]
    restarts = factors(4, lr_scheduler="cosine_with_restarts", lr_scheduler_num_cycles=2)
    assert restarts == [1, 0.5, 1, 0.5, 0]
    low = factors(2, lr_scheduler="cosine_with_min_lr", lr_scheduler_min_lr_ratio=0.2)
    assert low == [1, 0.6, 0.2]
    assert factors(2, lr_scheduler="polynomial", lr_scheduler_power=2.0) == [1, 0.25, 0]
    root = factors(2, lr_scheduler="inverse_sqrt", lr_scheduler_timescale=1)
    assert root == [1, 0.7071, 0.5774]
    stable = factors(
        6,
        lr_scheduler="warmup_stable_decay",
        lr_warmup_steps=2,
        lr_decay_steps=2,
        lr_scheduler_min_lr_ratio=0.1,
    )
    assert stable == [0, 0.5, 1, 1, 1, 0.55, 0.1]
    assert factors(2, lr_scheduler="rex") == [1, 0.9091, 0]
    rules = ['step_rules="1:2,0.1:4,0.01"']
    pieces = factors(5, lr_scheduler="piecewise_constant", lr_scheduler_args=rules)
    assert pieces == [1, 1, 0.1, 0.1, 0.01, 0.01]


@pytest.mark.parametrize("value", ["abc", "200%", -1, 1.5])
def test_odd_numbers_of_steps_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="neither a number of steps"):
        schedule.steps(value, 100, "lr_warmup_steps")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr_scheduler": "cosin"}, "Did you mean 'cosine'"),
        ({"lr_warmup_steps": 5}, "constant takes no --lr_warmup_steps"),
        ({"lr_scheduler": "linear", "lr_warmup_steps": 500}, "the whole run 10"),
        ({"lr_scheduler": "piecewise_constant"}, "cannot read step_rules"),
        ({"lr_scheduler": "adafactor:1e-3"}, "sets its own rate"),
        ({"lr_scheduler_type": "CosineLR"}, "neither a class"),
        ({"lr_scheduler_type": "StepLR"}, "refuses its arguments"),
    ],
)
def test_schedules_refuse_nonsense(options: dict, sentence: str) -> None:
    optimizer = optim.create("adamw", groups(), lr=1e-2, arguments={})
    with pytest.raises(ConfigError, match=sentence):
        schedule.create(TrainConfig(**options), optimizer, 10)


def test_a_schedule_by_its_path() -> None:
    optimizer = optim.create("adamw", groups(), lr=1.0, arguments={})
    options = TrainConfig(
        lr_scheduler_type="StepLR", lr_scheduler_args=["step_size=1", "gamma=0.5"]
    )
    made = schedule.create(options, optimizer, 10)
    optimizer.step()
    made.step()
    assert made.get_last_lr() == [0.5]


def test_optimizers_with_their_own_rate_have_no_schedule() -> None:
    free = optim.create("schedulefree", groups(), lr=0.1, arguments={})
    assert isinstance(schedule.create(TrainConfig(), free, 10), schedule.Still)
    factor = optim.create("adafactor", groups(), lr=0.1, arguments={})
    still = schedule.create(TrainConfig(lr_scheduler="adafactor:1e-4"), factor, 10)
    factor.step()
    assert 0 < still.get_last_lr()[0] < 1
    with pytest.raises(ConfigError, match="warmup_steps=N"):
        schedule.create(TrainConfig(lr_warmup_steps=3), free, 10)
