"""The levels and timesteps of each solver: the published lists, and what is refused."""

import numpy as np
import pytest
import torch

from musubi.errors import ConfigError
from musubi.flow import schedules, solvers

UNIPC = [999, 978, 952, 920, 882, 833, 768, 681, 555, 356]
DPM = [1000, 978, 952, 921, 882, 833, 769, 681, 555, 357]


@pytest.mark.parametrize(("solver", "expected"), [("unipc", UNIPC), ("dpm++", DPM)])
def test_timesteps_of_ten_steps_with_shift_five(solver, expected):
    levels = schedules.sigmas(solver, 10, 5.0)
    assert schedules.timesteps(solver, levels).tolist() == expected


def test_timesteps_of_shift_three():
    told = schedules.timesteps("unipc", schedules.sigmas("unipc", 10, 3.0)).tolist()
    assert told[:3] + told[-1:] == [999, 963, 922, 249]
    told = schedules.timesteps("dpm++", schedules.sigmas("dpm++", 10, 3.0)).tolist()
    assert (told[3], told[-1]) == (874, 249), "of rounded levels: 875 and 250"


@pytest.mark.parametrize("steps", [4, 6, 8, 10, 20, 25, 30, 40, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 7.0, 8.0, 12.0, 16.0])
def test_timesteps_are_cut_from_unrounded_levels(steps, shift):
    line = np.linspace(1, 0, steps + 1)[:steps]
    expected = ((shift * line / (1 + (shift - 1) * line)) * 1000).astype(np.int64)
    found = schedules.timesteps("dpm++", schedules.sigmas("dpm++", steps, shift))
    assert found.tolist() == expected.tolist()
    line = np.linspace(np.float32(0.999).item(), 0, steps + 1)[:-1]
    expected = ((shift * line / (1 + (shift - 1) * line)) * 1000).astype(np.int64)
    found = schedules.timesteps("unipc", schedules.sigmas("unipc", steps, shift))
    assert found.tolist() == expected.tolist()


def test_euler_of_four_steps_with_shift_seven():
    told = schedules.timesteps("vanilla", schedules.sigmas("vanilla", 4, 7.0)).tolist()
    assert [round(t, 1) for t in told] == [1000, 954.5, 875, 700]


def test_without_shift_the_levels_are_a_line():
    torch.testing.assert_close(
        schedules.sigmas("vanilla", 4, 1.0), torch.linspace(1, 0, 5).double()
    )
    assert schedules.timesteps("unipc", schedules.sigmas("unipc", 9, 1.0)).tolist() == [
        999, 888, 777, 666, 555, 444, 333, 222, 111,
    ]  # fmt: skip


@pytest.mark.parametrize("solver", solvers.NAMES)
def test_levels_fall_to_zero(solver):
    levels = schedules.sigmas(solver, 7, 4.0)
    assert levels.shape == (8,)
    assert levels.dtype == torch.float64
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()


def test_every_solver_has_a_schedule():
    assert set(solvers.NAMES) == set(schedules.SCHEDULES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eulr", 10, 1.0), "no solver 'eulr'"),
        (("unipc", 0, 1.0), "--infer_steps 1 or more"),
        (("unipc", 10, 0.0), "--flow_shift > 0"),
    ],
)
def test_impossible_requests_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        schedules.sigmas(*arguments)
