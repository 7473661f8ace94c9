"""Frame indices and numbers of sections, against what the official code was measured to use."""

import pytest

from musubi.architectures.framepack import layout
from musubi.errors import ConfigError


def span(first, last):
    return tuple(range(first, last + 1))


@pytest.mark.parametrize("w", [1, 4, 9, 13])
@pytest.mark.parametrize("p", [0, 1, 3])
def test_inverted(w, p):
    q = 1 + p * w
    found = layout.inverted(w, p)
    assert found.target == span(q, q + w - 1)
    assert found.clean == (0, q + w)
    assert found.clean_2x == (q + w + 1, q + w + 2)
    assert found.clean_4x == span(q + w + 3, q + w + 18)


@pytest.mark.parametrize("w", [1, 9, 13])
def test_forward(w):
    found = layout.forward(w)
    assert found.target == span(20, 19 + w)
    assert found.clean == (0, 19)
    assert found.clean_2x == (17, 18)
    assert found.clean_4x == span(1, 16)


@pytest.mark.parametrize("w", [1, 9])
def test_one_frame(w):
    found = layout.one_frame(w)
    assert found.target == (w,)
    assert found.clean == (0, w + 1)
    assert found.clean_2x == (w + 2, w + 3)
    assert found.clean_4x == span(w + 4, w + 19)
    bare = layout.one_frame(w, target=5, controls=(0, 10), post=False, with_2x=False, with_4x=False)
    assert bare == layout.Layout(target=(5,), clean=(0, 10))


@pytest.mark.parametrize(
    ("seconds", "window", "sections"),
    # 0.6 s are half a section: Python rounds to the even neighbour, as ever.
    [(5.0, 9, 4), (1.0, 9, 1), (0.1, 9, 1), (60.0, 9, 50), (1.8, 9, 2), (3.0, 9, 2), (5.0, 4, 9)],
)
def test_seconds(seconds, window, sections):
    assert layout.sections_of(seconds, window) == sections


def test_frames():
    assert [layout.sections_in(n, 9) for n in (36, 37, 72, 73, 109)] == [0, 1, 1, 2, 3]
    assert [layout.frames_of(n, 9) for n in (1, 2, 3)] == [37, 73, 109]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, (0,)),
        (2, (1, 0)),
        (4, (3, 2, 1, 0)),
        (5, (3, 2, 2, 1, 0)),
        (9, (3, 2, 2, 2, 2, 2, 2, 1, 0)),
    ],
)
def test_paddings(count, expected):
    assert layout.paddings(count) == expected


def test_own_paddings_fill_up_and_are_cut():
    assert layout.paddings(4, (1, 1)) == (1, 1, 1, 0)
    assert layout.paddings(6, (0,)) == (0, 2, 2, 2, 1, 0)
    assert layout.paddings(2, (3, 2, 1, 0)) == (3, 2)
    assert layout.paddings_from("3, 2,0") == (3, 2, 0)
    for wrong in ("", "a,b", "1,-1", "1.5"):
        with pytest.raises(ConfigError, match="latent_paddings"):
            layout.paddings_from(wrong)
