"""What the options of MagCache mean, and which calls it counts."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from musubi.errors import ConfigError
from musubi.generate.steps import Steps, policy_of
from musubi.plugin import Conditioning

SAMPLING = SimpleNamespace(mag_ratios=(1.0, 1.1, 1.2))
NOTHING_MEASURED = SimpleNamespace(mag_ratios=())


def test_what_the_options_mean():
    assert policy_of({}, SAMPLING) is None
    assert policy_of({"magcache_mag_ratios": None, "magcache_k": 3}, SAMPLING) is None
    found = policy_of({"magcache_mag_ratios": "0"}, SAMPLING)
    assert (found.ratios, found.retention, found.threshold, found.k) == (
        (1.0, 1.1, 1.2), 0.2, 0.24, 6,
    )  # fmt: skip
    found = policy_of(
        {
            "magcache_mag_ratios": "1, 1.5,2",
            "magcache_retention_ratio": 0.1,
            "magcache_threshold": 0.5,
            "magcache_k": 2,
        },
        NOTHING_MEASURED,
    )
    assert (found.ratios, found.retention, found.threshold, found.k) == ((1, 1.5, 2), 0.1, 0.5, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [("0", "measured"), ("1,a", "list of numbers"), ("", "list of numbers"), ("1,-1", "above 0")],
)
def test_ratios_that_cannot_be(text, says):
    with pytest.raises(ConfigError, match=says):
        policy_of({"magcache_mag_ratios": text}, NOTHING_MEASURED)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.ran = 0
        self.blocks[0].register_forward_hook(self.count)

    def count(self, *_):
        self.ran += 1

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def run(options, calls, *, steps=4):
    """How often the blocks ran for `steps` steps of these calls, in two sections."""
    net, x = Net(), torch.ones(1, 3, 4)
    recipe = SimpleNamespace(options=options)
    found = Steps(recipe, SAMPLING)
    positive, negative = Conditioning({}), Conditioning({})
    given = {"positive": positive, "negative": negative, "other": Conditioning({})}
    with torch.no_grad():
        for _ in range(2):
            found.start(steps, positive, negative)
            for i in range(steps):
                found.step = i
                for name in calls:
                    found.run(net, ("blocks",), given[name], lambda: net(x))
    return net.ran, found.measured()


STILL = {"magcache_mag_ratios": "1", "magcache_retention_ratio": 0.0}


def test_steps_are_left_out_for_each_call_of_guidance_alike():
    assert run({}, ["positive"])[0] == 8
    # Of four steps the first and the last run, in each of two sections.
    assert run(STILL, ["positive"])[0] == 4
    assert run(STILL, ["positive", "negative"])[0] == 8


def test_other_calls_run_as_they_are():
    assert run(STILL, ["positive", "other"])[0] == 4 + 8


def test_calibration_runs_every_step_and_prints_what_the_option_takes():
    ran, lines = run({"magcache_calibration": True, **STILL}, ["positive", "negative"])
    assert ran == 16
    (line,) = lines
    option, _, text = line.partition(" ")
    assert option == "--magcache_mag_ratios"
    # The residual of this network does not change.
    assert [float(part) for part in text.split(",")] == pytest.approx([1.0] * 4)
