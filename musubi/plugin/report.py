"""How code shows messages to the user without printing: the CLI passes in a `Report`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class Progress(Protocol):
    """One bar, used as a context manager."""

    def __enter__(self) -> Progress: ...
    def __exit__(self, *exc: object) -> None: ...

    def advance(self, n: int = 1, **figures: float | str) -> None:
        """Move the bar by `n` steps; `figures` (loss, items/s) are shown after the bar."""


class Report(Protocol):
    """Messages, tables and progress of a command. Only `musubi.cli.report` prints."""

    def note(self, text: str) -> None:
        """One line of information."""

    def warn(self, text: str) -> None:
        """One line about something that the user should look at. The same text is shown only once."""

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A small table."""

    def progress(
        self, title: str, total: int | None, *, done: int = 0, unit: str = "it"
    ) -> Progress:
        """A progress bar of `total` steps; it starts at `done`."""
        ...


class _QuietProgress:
    def __enter__(self) -> _QuietProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def advance(self, n: int = 1, **figures: float | str) -> None:
        pass


class Quiet:
    """A report that shows nothing and keeps the messages: for tests, and for all ranks but the first."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        self.notes.append(title)
        self.notes.extend(" | ".join(str(cell) for cell in row) for row in rows)

    def progress(
        self, title: str, total: int | None, *, done: int = 0, unit: str = "it"
    ) -> Progress:
        return _QuietProgress()
