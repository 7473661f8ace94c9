"""Where clips are cut, and rates made the model's."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musubi.data.frames import by_source_fps, by_timestamps, needed, windows


def entry(mode: str, targets=(1,), **more) -> SimpleNamespace:
    keys = {"frame_stride": 1, "frame_sample": 1, "max_frames": 129, "period": 4}
    return SimpleNamespace(frame_extraction=mode, target_frames=targets, **{**keys, **more})


@pytest.mark.parametrize(
    ("mode", "more", "expected"),
    [
        ("head", {}, [(0, 1), (0, 5)]),
        ("chunk", {"target_frames": (5,)}, [(0, 5), (5, 5)]),
        ("slide", {"target_frames": (9,), "frame_stride": 2}, [(0, 9), (2, 9)]),
        ("uniform", {"target_frames": (5,), "frame_sample": 3}, [(0, 5), (3, 5), (7, 5)]),
        ("uniform", {"target_frames": (5,), "frame_sample": 1}, [(0, 5)]),
        ("full", {}, [(0, 9)]),
        ("full", {"max_frames": 8}, [(0, 5)]),
    ],
)
def test_modes(mode, more, expected):
    targets = more.pop("target_frames", (1, 5, 25))
    assert windows(12, entry(mode, targets, **more)) == expected


modes = st.sampled_from(["head", "chunk", "slide", "uniform", "full"])


@given(
    modes,
    st.integers(0, 200),
    st.sets(st.integers(0, 20).map(lambda k: 4 * k + 1), min_size=1),
    st.integers(1, 40),
    st.integers(1, 8),
    st.integers(1, 200),
)
@settings(deadline=None)
def test_clips_lie_inside_once_each_and_ascending(mode, total, targets, stride, sample, most):
    one = entry(
        mode, tuple(sorted(targets)), frame_stride=stride, frame_sample=sample, max_frames=most
    )
    found = windows(total, one)
    assert found == sorted(set(found))
    for start, length in found:
        assert start >= 0 and start + length <= total and length % 4 == 1
    limit = needed(one)
    if limit is not None:  # looking no further gives the same clips
        assert windows(min(total, limit), one) == found


def test_the_old_rule_for_source_fps():
    assert by_source_fps(8, 30, 16).tolist() == [0, 2, 4, 6]
    assert by_source_fps(12, 60, 24).tolist() == [0, 3, 5, 8, 11]


def test_a_slower_source_is_repeated_not_thinned():
    assert by_source_fps(3, 12, 24).tolist() == [0, 0, 1, 1, 2, 2]


@given(st.integers(1, 300), st.floats(1, 120), st.floats(1, 120))
def test_converted_length_lasts_as_long(count, source, rate):
    found = by_source_fps(count, source, rate)
    assert (np.diff(found) >= 0).all()
    assert abs(len(found) - count * rate / source) <= 1 + 1e-6


def even(count: int, fps: float, tick: float = 0.0) -> tuple[np.ndarray, float]:
    times = np.arange(count) / fps
    if tick:
        times = np.round(times / tick) * tick
    return times, count / fps


@pytest.mark.parametrize("tick", [0.0, 1e-3, 1 / 90000])
@pytest.mark.parametrize("rate", [16, 24, 30])
def test_the_same_rate_changes_nothing(rate, tick):
    times, end = even(50, rate, tick)
    assert by_timestamps(times, end, rate, tick).tolist() == list(range(50))


def test_ntsc_is_the_same_rate():
    times, end = even(2000, 24000 / 1001)
    assert by_timestamps(times, end, 24, 1e-5).tolist() == list(range(2000))


def test_faster_sources_are_thinned_and_slower_ones_repeated():
    assert by_timestamps(*even(12, 32), 16, 1e-4).tolist() == [0, 2, 4, 6, 8, 10]
    assert by_timestamps(*even(3, 8), 16, 1e-4).tolist() == [0, 0, 1, 1, 2, 2]
    assert by_timestamps(*even(9, 30), 16, 1e-4).tolist() == [0, 1, 3, 5, 7]


def test_a_pause_is_a_frame_that_stays():
    times = np.array([0, 0.1, 0.2, 0.6, 0.7])
    assert by_timestamps(times, 0.8, 10, 1e-3).tolist() == [0, 1, 2, 2, 2, 2, 3, 4]


def test_a_single_frame():
    assert by_timestamps(np.array([0.0]), 1 / 16, 16, 1e-3).tolist() == [0]
