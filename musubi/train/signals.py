"""A signal while training: the first lets the step finish and saves the state, the second stops at once."""

from __future__ import annotations

from musubi.plugin.report import Report
from musubi.stopping import Deferred


class Stop(Deferred):
    """Used as a context manager around the loop; `requested` says whether to stop.

    Outside the main thread no signal is heard, and `requested` stays as the caller sets it.

    Args:
        report: Told of the first signal.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(
            lambda: report.note(
                "Stopping after this step and saving the state. Once more stops now."
            )
        )
