"""What is printed: on a terminal, into a file, in a console that lacks the characters."""

import ast
import io
import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console

import musubi
from musubi.cli import report as module
from musubi.cli.library_warnings import LibraryWarnings
from musubi.cli.report import Terminal, rate
from musubi.plugin import Quiet


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def plain():
    """A report into files, with its clock and what it wrote to each."""
    out, err, clock = io.StringIO(), io.StringIO(), Clock()
    report = Terminal(Console(file=out, width=40), Console(file=err, width=40), clock)
    return report, out, err, clock


def test_without_a_terminal_progress_is_a_line_now_and_then(plain):
    report, out, _, clock = plain
    with report.progress("training", 100, done=10, unit="step") as bar:
        for _ in range(30):
            clock.now += 0.5
            bar.advance(1, loss=0.123456)
    assert out.getvalue().splitlines() == [
        "training: 10 of 100",
        "training: 20/100, 2.00 step/s, 0:40 left, loss 0.1235",
        "training: 30/100, 2.00 step/s, 0:35 left, loss 0.1235",
        "training: 40/100, 2.00 step/s, 0:30 left, loss 0.1235",
    ]


def test_the_last_step_is_always_told(plain):
    report, out, _, clock = plain
    with report.progress("encoding", None) as bar:
        clock.now += 4
        bar.advance(2)
    assert out.getvalue().splitlines() == ["encoding", "encoding: 2, 2.00 s/it"]


def test_a_phase_that_is_over_at_once_is_one_line(plain):
    report, out, _, clock = plain
    with report.progress("Looking at files", 5, unit="file") as bar:
        clock.now += 0.1
        bar.advance(5)
    assert out.getvalue().splitlines() == ["Looking at files: 5"]


def test_figures_of_a_short_phase_are_told(plain):
    report, out, _, clock = plain
    with report.progress("steps", 3) as bar:
        clock.now += 1
        bar.advance(3, loss=0.5)
    assert out.getvalue().splitlines() == ["steps: 3", "steps: 3/3, 3.00 it/s, loss 0.5"]


def test_a_phase_within_another_speaks_only_when_it_takes_long(plain):
    report, out, _, clock = plain
    with report.progress("steps", 2) as steps:
        for seconds in (3, 6):
            with report.progress("Denoising", 4, unit="step") as inner:
                for _ in range(2):
                    clock.now += seconds / 2
                    inner.advance(2)
        steps.advance(2)
    assert out.getvalue().splitlines() == [
        "steps: 2",
        "Denoising: 4/4, 1.50 s/step",
        "steps: 2/2, 4.50 s/it",
    ]


def test_rates_below_one_are_turned_round():
    assert rate(2.5, "it") == "2.50 it/s"
    assert rate(0.25, "it") == "4.00 s/it"


def test_notes_are_not_folded_and_hold_brackets(plain):
    report, out, err, _ = plain
    text = "[bold]" + "x" * 60 + "[/nonsense]"
    report.note(text)
    report.warn("careful")
    report.warn("careful")
    assert out.getvalue() == text + "\n"
    assert err.getvalue() == "warning: careful\n"


def test_a_table_in_a_file_is_plain_and_aligned(plain):
    report, out, _, _ = plain
    report.table("Files [x]", ("Name", "Size", "[b]"), [("y" * 60, 1, "z"), ("猫", 23, "")])
    assert out.getvalue().splitlines() == [
        "Files [x]",
        f"  Name{' ' * 56}  Size  [b]",
        f"  {'y' * 60}  1     z",
        f"  猫{' ' * 58}  23",
    ]


def test_a_table_on_a_terminal_folds_what_is_too_long():
    out = io.StringIO()
    report = Terminal(Console(file=out, force_terminal=True, width=40, color_system=None))
    report.table("Files [x]", ("Name",), [("y" * 80,)])
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("Files [x]")
    assert max(map(len, lines)) <= 40
    assert out.getvalue().count("y") == 80


def test_on_a_terminal_lines_go_above_the_bars_and_two_bars_share_one_display():
    out, err = io.StringIO(), io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    report = Terminal(console, Console(file=err))
    with report.progress("outer [1]", 2) as outer:
        outer.advance(1, loss=1.0)
        with report.progress("inner", None, unit="clip") as inner:
            report.note("a note")
            report.warn("a warning")
            inner.advance()
    assert all(
        text in out.getvalue() for text in ("outer [1]", "inner", "loss 1", "a note", "a warning")
    )
    assert err.getvalue() == ""
    report.warn("afterwards")
    assert "afterwards" in err.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_without_the_characters_shows_others(terminal, monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    module.safe_streams()
    report = Terminal(Console(force_terminal=terminal, width=80))
    report.note("猫が歩く")
    report.table("表", ("列",), [("猫",)])
    with report.progress("進む", 3) as bar:
        bar.advance(3)
    module.page("猫\n")
    stream.flush()
    assert b"????" in raw.getvalue()


def test_only_the_first_process_speaks(monkeypatch):
    for name, value, kind in (
        ("RANK", "0", Terminal),
        ("RANK", "1", Quiet),
        ("LOCAL_RANK", "2", Quiet),
    ):
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.setenv(name, value)
        module.terminal.cache_clear()
        try:
            assert isinstance(module.terminal(), kind)
        finally:
            module.terminal.cache_clear()


def test_warnings_of_libraries_are_shown_once(plain, monkeypatch):
    report, _, err, _ = plain
    logger = logging.getLogger("some.library")
    handler = LibraryWarnings(report)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    for _ in range(2):
        logger.warning("old %s", "weights")
    logger.info("chatter")
    assert err.getvalue() == "warning: some.library: old weights\n"


def test_a_finished_bar_goes_and_a_phase_leaves_one_line():
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=True, width=100)
    report = Terminal(console, Console(file=io.StringIO()), clock)
    with report.progress("steps", 10, unit="it") as outer:
        with report.progress("inner", 3) as inner:
            clock.now += 5
            inner.advance(3)
        clock.now += 5
        outer.advance(10, loss=0.25)
        assert [task.description for task in outer.bars.tasks] == ["steps"]
    lines = [line for line in out.getvalue().splitlines() if "s: 10, 0:10" in line]
    assert len(lines) == 1 and "1.00 it/s, loss 0.25" in lines[0]
    assert "inner: 3" not in out.getvalue()


def test_a_rate_is_that_of_the_last_seconds(plain):
    report, out, _, clock = plain
    with report.progress("encoding", None) as bar:
        clock.now += 100  # a slow start
        bar.advance(1)
        for _ in range(20):
            clock.now += 5
            bar.advance(10)
    assert out.getvalue().splitlines()[-1] == "encoding: 201, 2.00 it/s"


def test_empty_heads_take_no_line(plain):
    report, out, _, _ = plain
    report.table("Training", ("", ""), [("steps", 4)])
    assert out.getvalue().splitlines() == ["Training", "  steps  4"]
    terminal = io.StringIO()
    wide = Terminal(Console(file=terminal, force_terminal=True, width=60, color_system=None))
    wide.table("A title that is much wider than its table", ("", ""), [("a", 1)])
    lines = terminal.getvalue().splitlines()
    assert lines[0].rstrip() == "A title that is much wider than its table"
    assert len([line for line in lines if line.strip()]) == 4


def test_a_table_has_a_head_over_each_column_or_none_at_all():
    heads = []
    for path in Path(musubi.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or getattr(node.func, "attr", "") != "table":
                continue
            if len(node.args) == 3 and isinstance(node.args[1], ast.Tuple):
                heads.append((path.name, [getattr(e, "value", "?") for e in node.args[1].elts]))
    assert len(heads) > 10
    assert [one for one in heads if any(one[1]) and not all(one[1])] == []
