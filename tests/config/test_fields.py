"""What a field of a model looks like from the command line."""

from pathlib import Path
from typing import Literal

import pytest

from musubi.config.fields import as_number, flags, names, shown
from musubi.config.options import Options, option


class Sample(Options):
    plain: bool = option(False, "A flag.")
    on: bool = option(True, "On by default.")
    count: int | None = option(None, "A number.", metavar="N")
    mode: Literal["one", "two"] = option("one", "A choice.")
    maybe: Literal["one", "two"] | None = option(None, "A choice or nothing.")
    many: list[str] = option([], "Texts.", aliases=("several",))
    scales: tuple[float, ...] | None = option(None, "Numbers.")
    size: tuple[int, int] = option((256, 256), "A size.", metavar="H W")
    warmup: int | float | str = option(0, "Steps or a ratio.")
    path: Path = option(..., "A path.")


FLAGS = flags(Sample)


def test_the_number_of_words_follows_from_the_type():
    assert {name: flag.words for name, flag in FLAGS.items()} == {
        "plain": 0, "on": 0, "count": 1, "mode": 1, "maybe": 1,
        "many": -1, "scales": -1, "size": 2, "warmup": 1, "path": 1,
    }  # fmt: skip


def test_choices_and_placeholders():
    assert FLAGS["mode"].choices == FLAGS["maybe"].choices == ("one", "two")
    assert FLAGS["mode"].metavar == "one|two"
    assert (FLAGS["count"].metavar, FLAGS["size"].metavar) == ("N", "H W")
    assert (FLAGS["path"].metavar, FLAGS["scales"].metavar) == ("PATH", "FLOAT")
    assert FLAGS["plain"].metavar == ""


def test_required_and_default():
    assert FLAGS["path"].required
    assert not FLAGS["count"].required
    assert FLAGS["size"].default == (256, 256)


def test_aliases_lead_to_the_options_own_name():
    assert names(FLAGS.values())["several"] == "many"
    assert names(FLAGS.values())["many"] == "many"


def test_words_are_read_as_the_model_takes_them():
    assert FLAGS["count"].read("3") == "3"
    assert FLAGS["size"].read(("480", "832")) == ["480", "832"]
    assert FLAGS["plain"].read(True) is True
    assert FLAGS["warmup"].read("100") == 100
    assert FLAGS["warmup"].read("5%") == "5%"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (False, ""),
        ((), ""),
        (True, "on"),
        ((480, 832), "480 832"),
        (0, "0"),
        (1e-4, "0.0001"),
    ],
)
def test_defaults_are_shown_as_they_would_be_written(value, text):
    assert shown(value) == text


def test_a_word_that_reads_as_a_number_is_one():
    assert [as_number(w) for w in ("1", "-0.5", "1e-4", "x")] == [1, -0.5, 1e-4, "x"]
