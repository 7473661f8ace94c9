"""The only module that prints: notes, warnings, tables, progress and failures."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from musubi import stopping
from musubi.plugin.report import Progress, Quiet, Report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import Task
    from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0
SECONDS_WORTH_A_LINE = 2.0
"""A phase that took less leaves no line on a terminal."""
SECONDS_OF_A_RATE = 30.0
"""Rates are those of the last seconds: a slow start is soon forgotten."""


def safe_streams() -> None:
    """Make printing text that the console's encoding lacks show `?` instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def first_process() -> bool:
    """Whether this is the only process, or the first of several, which prints for all."""
    return all(os.environ.get(name, "0") in ("", "0") for name in ("RANK", "LOCAL_RANK"))


@lru_cache(maxsize=1)
def terminal() -> Report:
    """The report of this process; silent on all processes but the first."""
    if not first_process():
        return Quiet()
    from musubi.cli.library_warnings import listen

    report = Terminal()
    listen(report)
    return report


def page(text: str) -> None:
    """Text that was asked for, as it stands."""
    sys.stdout.write(text)


def failure(what: str, fix: str | None, *, traceback: bool = False) -> None:
    """One red line on stderr, one below that says what to do; the traceback first when wanted."""
    console = _console(stderr=True)
    if traceback and sys.exc_info()[0] is not None:
        console.print_exception(show_locals=False)
    from rich.text import Text

    who = "" if first_process() else f" (process {os.environ.get('RANK', '?')})"
    line = Text(f"error{who}: ", style="bold red")
    console.print(line.append(what, style="red"), soft_wrap=True)
    if fix is not None:
        console.print(Text(fix), soft_wrap=True)


def ending(what: str, way_on: str | None) -> None:
    """The last message of a command that was stopped, on stderr, with a line that can be copied."""
    from rich.text import Text

    console = _console(stderr=True)
    for line in (what, way_on):
        if line is not None:
            console.print(Text(line), soft_wrap=True)


def bell() -> None:
    """Ring the bell, if there is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write("\a")
        sys.stderr.flush()


class Terminal:
    """A report for a person: bars on a terminal, a line now and then where there is none.

    Args:
        out: For notes, tables and progress; stdout when None.
        err: For warnings; stderr when None.
        clock: Seconds, for the pace of the lines.
    """

    def __init__(
        self,
        out: Console | None = None,
        err: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.out = out or _console()
        self.err = err or _console(stderr=True)
        self.clock = clock
        self._warned: set[str] = set()
        self._bars: Bars | None = None
        self._open = 0

    def note(self, text: str) -> None:
        from rich.text import Text

        self._print(self.out, Text(text))

    def warn(self, text: str) -> None:
        if text in self._warned:
            return
        self._warned.add(text)
        from rich.text import Text

        line = Text("warning: ", style="bold yellow").append(text, style="not bold")
        # A line on another stream would tear the bar; its own console moves it aside.
        self._print(self.err if self._bars is None else self.out, line)

    def _print(self, console: Console, text: Text) -> None:
        try:
            console.print(text, soft_wrap=True)
        except OSError:
            if not stopping.deferring():
                raise
            for number in (1, 2):  # a run outlives the one who reads what it says
                stopping.leave(number)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        from rich.table import Table
        from rich.text import Text

        texts = [[str(cell) for cell in row] for row in rows]
        if not self.out.is_terminal:
            for line in _plain_table(title, columns, texts):
                self.note(line)
            return
        # Above the table, not in it: a title is not folded to the width of its columns.
        self.out.print(Text(title, style="bold"), soft_wrap=len(title) <= self.out.width)
        table = Table(show_header=any(columns))
        for column in columns:
            table.add_column(Text(column), overflow="fold")
        for row in texts:
            table.add_row(*map(Text, row))
        self.out.print(table)

    def progress(
        self, title: str, total: int | None, *, done: int = 0, unit: str = "it"
    ) -> Progress:
        if total == 0:
            return Quiet().progress(title, total)  # nothing to wait for
        if self.out.is_terminal:
            return _Bar(self, title, total, done, unit)
        return _Lines(self, title, total, done, unit)

    def enter(self) -> Bars:
        """The display that all bars share; it appears with the first of them."""
        if self._bars is None:
            self._bars = _bars(self.out)
            self._bars.start()
        self.deeper()
        return self._bars

    def deeper(self) -> bool:
        """Count a phase that begins; whether it is within another."""
        self._open += 1
        return self._open > 1

    def leave(self) -> bool:
        """Close the display with the last bar; whether it was the last."""
        self._open -= 1
        if self._open == 0 and self._bars is not None:
            self._bars.stop()
            self._bars = None
        return self._open == 0


class _Bar:
    def __init__(
        self, terminal: Terminal, title: str, total: int | None, done: int, unit: str
    ) -> None:
        self.terminal, self.title, self.total, self.done, self.unit = (
            terminal, title, total, done, unit
        )  # fmt: skip
        self.figures = ""

    def __enter__(self) -> _Bar:
        self.bars = self.terminal.enter()
        self.began, self.count = self.terminal.clock(), self.done
        self.task = self.bars.add_task(
            _escaped(self.title), total=self.total, completed=self.done, unit=self.unit, figures=""
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.remove_task(self.task)
        outermost = self.terminal.leave()
        seconds = self.terminal.clock() - self.began
        if outermost and seconds >= SECONDS_WORTH_A_LINE:
            made = self.count - self.done
            parts = [f"{self.title}: {self.count}", _duration(seconds)]
            parts += [rate(made / seconds, self.unit)] if made else []
            parts += [self.figures] if self.figures else []
            self.terminal.note(", ".join(parts))

    def advance(self, n: int = 1, **figures: float | str) -> None:
        self.count += n
        if figures:
            self.figures = _figures(figures)
            self.bars.update(self.task, advance=n, figures=_escaped(_figures(figures)))
        else:
            self.bars.update(self.task, advance=n)


class _Lines:
    """Progress where nothing can be drawn over: a line at the start, then every 5 seconds.

    A last line says how it went, unless the phase was over at once. A phase within another is
    silent until it has taken 5 seconds.
    """

    def __init__(
        self, terminal: Terminal, title: str, total: int | None, done: int, unit: str
    ) -> None:
        self.terminal, self.title, self.total, self.unit = terminal, title, total, unit
        self.count = done
        self.figures: dict[str, float | str] = {}

    def __enter__(self) -> _Lines:
        self.began = self.told = self.terminal.clock()
        self.told_count = self.count
        self.seen: deque[tuple[float, int]] = deque([(self.told, self.count)])
        self.within = self.terminal.deeper()
        if not self.within:
            ahead = [
                str(number) for number in (self.count or None, self.total) if number is not None
            ]
            self.terminal.note(": ".join([self.title, *([" of ".join(ahead)] if ahead else [])]))
        return self

    def __exit__(self, *exc: object) -> None:
        self.terminal.leave()
        now = self.terminal.clock()
        worth = bool(self.figures) or now - self.began >= SECONDS_WORTH_A_LINE
        if self.within:
            worth = self.told > self.began
        if worth and self.count != self.told_count:
            self._tell(now)

    def advance(self, n: int = 1, **figures: float | str) -> None:
        self.count += n
        self.figures |= figures
        now = self.terminal.clock()
        if now - self.told >= SECONDS_BETWEEN_LINES:
            self._tell(now)

    def _tell(self, now: float) -> None:
        self.told, self.told_count = now, self.count
        while len(self.seen) > 1 and now - self.seen[1][0] >= SECONDS_OF_A_RATE:
            self.seen.popleft()
        then, count = self.seen[0]
        speed = (self.count - count) / (now - then) if now > then else None
        self.seen.append((now, self.count))
        parts = [f"{self.title}: {self.count}" + ("" if self.total is None else f"/{self.total}")]
        if speed:
            parts.append(rate(speed, self.unit))
            if self.total is not None and self.count < self.total:
                parts.append(f"{_duration((self.total - self.count) / speed)} left")
        if self.figures:
            parts.append(_figures(self.figures))
        self.terminal.note(", ".join(parts))


def rate(speed: float, unit: str) -> str:
    """Items per second, or seconds per item when there are fewer than one a second."""
    return f"{speed:.2f} {unit}/s" if speed >= 1 else f"{1 / speed:.2f} s/{unit}"


def _plain_table(title: str, columns: Sequence[str], rows: list[list[str]]) -> Iterable[str]:
    """Aligned columns for a file or a pipe, which have no edge to fold at."""
    from rich.cells import cell_len

    table = [list(columns), *rows] if any(columns) else rows
    widths = [max((cell_len(row[i]) for row in table), default=0) for i in range(len(columns))]
    yield title
    for row in table:
        cells = (c + " " * (w - cell_len(c)) for c, w in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


def _figures(figures: dict[str, float | str]) -> str:
    return " ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _console(**settings: Any) -> Console:
    from rich.console import Console

    return Console(highlight=False, **settings)


def _bars(console: Console) -> Bars:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(rate(task.speed, task.fields["unit"]) if task.speed else "")

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        speed_estimate_period=SECONDS_OF_A_RATE,
    )
