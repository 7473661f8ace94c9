"""Signals while training: after the first, the step finishes and the state is saved; the second
stops at once.
"""

from __future__ import annotations

from musubi.plugin.report import Report
from musubi.stopping import Deferred


class Stop(Deferred):
    """A context manager around the training loop; `requested` says whether to stop.

    Outside the main thread signals are not received, and only the caller sets `requested`.

    Args:
        report: Shows a message at the first signal.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(
            lambda: report.note(
                "Stopping after this step and saving the state. Once more stops now."
            )
        )
