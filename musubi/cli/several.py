"""Several runs of training from one file: one after the other, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from musubi.errors import ConfigError, RunError, StoppedError
from musubi.plugin.report import Report
from musubi.stopping import Deferred, command_line

_STOPPED = (130, 143)
_LOOK = 0.2  # seconds between looks at whether a signal has come


def run_all(words: Sequence[str], names: Sequence[str], report: Report) -> None:
    """Make each run of a file; one that fails does not stop the rest.

    Args:
        words: As typed behind `musubi train`.
        names: Of the runs.
        report: Shows each run, and at the end how all runs ended.

    Raises:
        ConfigError: Several processes were started for one file of several runs.
        RunError: A run failed; the others were made.
        StoppedError: A signal asked to stop; the run that was under way has saved its state.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "The file has several runs, and several processes were started for it.",
            fix=f"Start them for one run after the other: --run {names[0]}.",
        )
    ends: dict[str, str] = dict.fromkeys(names, "not begun")
    stop = Deferred(
        lambda: report.note("Stopping the run that is under way, and not the next one.")
    )
    with stop:
        for number, name in enumerate(names, start=1):
            if stop.requested:
                break
            report.note(f"Run {number} of {len(names)}: {name}.")
            code = _run([*words, f"--run={name}"], stop)
            ends[name] = _ended(code)
            stop.requested = stop.requested or code in _STOPPED
    report.table("Runs", ("run", "how it ended"), ends.items())
    if stop.requested:
        raise StoppedError(
            f"Stopped; {sum(end == 'finished' for end in ends.values())} of {len(names)} runs are finished.",
            fix=f"Go on with: {command_line(['musubi', 'train', *words, '--resume', 'auto'])}",
        )
    failed = [name for name, end in ends.items() if end != "finished"]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(names)} runs failed: {', '.join(failed)}.",
            fix=f"What each said is above. Make one again with --run {failed[0]}.",
        )


def _run(words: Sequence[str], stop: Deferred) -> int:
    """The exit code of one run; a signal is handed on once, so that the run saves its state."""
    apart: dict[str, Any] = (
        {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        if sys.platform == "win32"
        else {
            "start_new_session": True
        }  # or Ctrl+C would reach it as well, and twice means at once
    )
    process = subprocess.Popen([sys.executable, "-m", "musubi", "train", *words], **apart)
    asked = False
    while True:
        try:
            return process.wait(_LOOK)
        except subprocess.TimeoutExpired:
            if stop.requested and not asked:
                asked = True
                process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))


def _ended(code: int) -> str:
    if code == 0:
        return "finished"
    if code in _STOPPED:
        return "stopped"
    return f"failed, ended by signal {-code}" if code < 0 else f"failed, exit code {code}"
