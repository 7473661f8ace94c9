"""Shows warnings that libraries log as our own warnings, so that they do not break a progress bar."""

from __future__ import annotations

import logging

from musubi.plugin.report import Report


class LibraryWarnings(logging.Handler):
    """Passes warnings to a report.

    Args:
        report: Shows the warnings.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        """One line: the library's name and what it says."""
        self.report.warn(f"{record.name}: {record.getMessage()}")


def listen(report: Report) -> None:
    """Make `report` show the warnings of libraries."""
    # It misses a package for products in 4 bits on a CPU, which nothing here asks for.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    logging.getLogger().addHandler(LibraryWarnings(report))
