"""`report.html` while a run goes on: drawn beside training by a thread that reads the run's files.

Whatever goes wrong here is told once and never stops the run.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from musubi.errors import counted
from musubi.pages import document
from musubi.pages.account import Account
from musubi.pages.embed import Embedder
from musubi.pages.run import REPORT, RunFolder
from musubi.plugin.report import Report

SECONDS = 30.0
"""Between two drawings, at least."""
SHARE = 0.02
"""Of the time that may go into drawing."""
_PATIENCE = 20.0


class LivePage:
    """The page of a run that is going on.

    Args:
        folder: `{output_dir}/{output_name}`.
        account: What the run notes.
        report: Gets a warning if the page cannot be written.
    """

    def __init__(self, folder: Path, account: Account, report: Report) -> None:
        self.account = account
        self._run = RunFolder(folder)
        self._embed = Embedder(folder)
        self._report = report
        self._wanted = threading.Event()
        self._over = threading.Event()
        self._next = 0.0
        self._thread = threading.Thread(target=self._work, name="report page", daemon=True)

    @property
    def path(self) -> Path:
        """The page."""
        return self._run.folder / REPORT

    def begin(self) -> None:
        """Draw it for the first time, and start looking after it."""
        self._thread.start()
        self.renew()

    def tick(self) -> None:
        """A step was made: draw the page anew when the last drawing is old enough."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS
            self._wanted.set()

    def renew(self) -> None:
        """Something was written that should be seen: draw it soon."""
        self._wanted.set()

    def end(self, state: str, message: str = "") -> None:
        """Draw it for the last time.

        Args:
            state: "finished", "stopped" or "failed".
            message: Why.
        """
        self.account.state, self.account.message = state, message
        self._over.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def _work(self) -> None:
        while not self._over.is_set():
            self._wanted.wait()
            self._wanted.clear()
            began = time.monotonic()
            self._draw()
            took = time.monotonic() - began
            self._next = time.monotonic() + max(SECONDS, took / SHARE)
            self._over.wait(min(5.0, took / SHARE))  # saves and previews may come close together
        self._draw()

    def _draw(self) -> None:
        try:
            self.account.write(self._run.folder)
            write(self._run, self._embed)
        except Exception as error:
            self._report.warn(f"{self.path} could not be renewed: {error!r}. Training goes on.")


@contextmanager
def served(folder: Path, report: Report) -> Iterator[None]:
    """Inside, another process serves the pages of a folder; its address is told once it is known.

    It reads files and ends with this process: nothing that it does can reach the run.
    """
    words = [sys.executable, "-m", "musubi", "watch", str(folder), "--until_input_ends"]
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        report.warn(f"The page is not served: {error}. Training goes on.")
        yield
        return
    reader = threading.Thread(target=_tell, args=(process, report), daemon=True)
    reader.start()
    try:
        yield
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
        process.stdout.close()


def _tell(process: subprocess.Popen[bytes], report: Report) -> None:
    """Show the first line that the other process prints, and discard the others."""
    assert process.stdout is not None
    for number, line in enumerate(process.stdout):
        if number == 0:
            report.note(line.decode("utf-8", "replace").strip())


def write(run: RunFolder, embed: Embedder | None = None) -> Path:
    """Write the page of a run's folder, from its files; the path of the page.

    Raises:
        OSError: It cannot be written.
    """
    embed = embed or Embedder(run.folder)
    embed.begin()
    data = run.data(embed)
    if embed.left_out:
        data["thinned"] = (
            f"Linked and not shown, to keep this page small: "
            f"{counted(embed.left_out, 'older sample')}."
        )
    path = run.folder / REPORT
    document.write(path, run.name, data)
    return path
