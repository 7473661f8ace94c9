"""Texts and pictures by section, and what --one_frame_inference says."""

import pytest

from musubi.architectures.framepack.by_section import by_section, chosen
from musubi.architectures.framepack.single import OneFrame, one_frame_from
from musubi.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", {0: "a cat"}),
        ("", {0: ""}),
        ("0: a cat", {0: "0: a cat"}),  # no separator: colons mean nothing
        ("ratio 16:9", {0: "ratio 16:9"}),
        ("0:a cat;;;-1:it sleeps", {0: "a cat", -1: "it sleeps"}),
        ("a cat;;;-1:it sleeps", {0: "a cat", -1: "it sleeps"}),
        ("0-2:one;;;3:two", {0: "one", 1: "one", 2: "one", 3: "two"}),
        ("2:two;;;1:one", {2: "two", 1: "one", 0: "one"}),
        ("-1:last;;;-2:before", {-1: "last", -2: "before", 0: "before"}),
        ("1:one;;;-1:last;;;", {1: "one", -1: "last", 0: "one"}),
        ("0:time is 12:30;;;1:a\nb", {0: "time is 12:30", 1: "a\nb"}),
        (r"C:\a.png;;;-1:D:\b.png", {0: r"C:\a.png", -1: r"D:\b.png"}),
        (r"0:C:\a.png;;;1: C:/b.png", {0: r"C:\a.png", 1: "C:/b.png"}),
    ],
)
def test_by_section(text, expected):
    assert by_section(text) == expected


@pytest.mark.parametrize("wrong", ["0:a;;;0:b", "a;;;b", "0-2:a;;;1:b", "3-1:a;;;0:b"])
def test_what_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ConfigError):
        by_section(wrong)


def test_which_is_meant():
    values = {0: "start", 2: "third", -1: "last", -2: "last but one"}
    assert [chosen(values, i, 4) for i in range(4)] == [0, 0, -2, -1]
    assert [chosen(values, i, 6) for i in range(6)] == [0, 0, 2, 0, -2, -1]
    assert chosen({0: "a"}, 0, 1) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("default", OneFrame()),
        ("", OneFrame()),
        ("target_index=1", OneFrame(target=1)),
        (
            "no_2x, no_4x,no_post,target_index=9,control_index=0;10",
            OneFrame(target=9, controls=(0, 10), with_2x=False, with_4x=False, post=False),
        ),
        ("control_index=3", OneFrame(controls=(3,))),
    ],
)
def test_one_frame(text, expected):
    assert one_frame_from(text) == expected


@pytest.mark.parametrize(
    "wrong",
    ["no_3x", "target_index", "target_index=a", "target_index=1;2", "no_2x=1", "control_index=0,1"],
)
def test_a_word_that_means_nothing_is_refused(wrong):
    with pytest.raises(ConfigError):
        one_frame_from(wrong)


def test_each_control_image_has_an_index():
    assert OneFrame().indices(3) == (0, 0, 0)
    assert OneFrame().indices(0) == (0,)
    assert OneFrame(controls=(0, 10)).indices(2) == (0, 10)
    for count in (1, 3):
        with pytest.raises(ConfigError, match="2 frame indices"):
            OneFrame(controls=(0, 10)).indices(count)
