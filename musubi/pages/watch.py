"""`musubi watch`: the pages of runs, live, on 127.0.0.1."""

from __future__ import annotations

import sys
import threading
import time
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musubi.config.pages import WatchConfig
from musubi.errors import RunError, system_reason
from musubi.pages.run import RunFolder, runs_in
from musubi.pages.samples import IMAGES
from musubi.pages.serve import HOST, Files, Page, Server, Site
from musubi.plugin import Report


def run(config: WatchConfig, report: Report) -> None:
    """Serve until Ctrl+C, or until the standard input ends when that was asked for.

    Raises:
        ConfigError: A folder does not exist.
        RunError: The port is taken.
    """
    folders = [Path(folder) for folder in config.folders]
    runs_in(folders)
    try:
        server = Server(site(folders), config.port)
    except OSError as error:
        raise RunError(
            f"Port {config.port} of {HOST} cannot be used: {system_reason(error)}.",
            fix="Leave --port out for a free one.",
        ) from error
    report.note(f"Watching at {server.address}")
    if config.until_input_ends:
        threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
    else:
        report.note("Ctrl+C ends; runs go on.")
    if config.open:
        webbrowser.open(server.address)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        report.note("No longer watched. `musubi watch` shows it again.")
    finally:
        server.over.set()
        server.server_close()


def site(folders: Sequence[Path]) -> Site:
    """The pages of all runs in some folders."""
    runs = Runs(folders)
    return Site(runs.page, runs.files)


@dataclass
class Runs:
    """The runs in some folders, each known by a number that stays.

    Args:
        folders: The folders.
    """

    folders: Sequence[Path]
    files: Files = field(init=False)
    _known: dict[Path, int] = field(default_factory=dict[Path, int])
    _runs: dict[int, RunFolder] = field(default_factory=dict[int, RunFolder])
    _looked: float = -1e9
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # The samples of a run lie beside its own folder.
        self.files = Files([*self.folders, *(f.resolve().parent / "sample" for f in self.folders)])

    def page(self, place: str) -> Page | None:
        """The page at an address."""
        self._look()
        head, _, last = place.rpartition("/")
        if head == "run" and last.isdecimal() and int(last) in self._runs:
            one = self._runs[int(last)]
            return Page(
                one.name, lambda: one.data(lambda path: self._show(path, "../../")), one.changed
            )
        if place != "":
            return None
        return Page("musubi watch", self._list, self._changed)

    def _look(self) -> None:
        """Find runs that were started since."""
        with self._lock:
            if time.monotonic() - self._looked < 1:
                return
            self._looked = time.monotonic()
            for one in runs_in(f for f in self.folders if f.is_dir()):
                number = self._known.setdefault(one.folder, len(self._known))
                self._runs.setdefault(number, one)

    def _list(self) -> Mapping[str, Any]:
        runs = sorted(self._runs.items(), key=lambda item: -_newest(item[1]))
        return {
            "view": "runs",
            "places": [str(folder) for folder in self.folders],
            "runs": [{**one.summary(), "href": f"run/{number}/"} for number, one in runs],
        }

    def _changed(self) -> Any:
        self._look()
        return tuple(one.changed() for one in self._runs.values())

    def _show(self, path: Path, up: str) -> Mapping[str, Any]:
        number = self.files.number(path)
        if number is None:
            return {"why": "outside the folders that are watched"}
        kind = "image" if path.suffix.lower() in IMAGES else "video"
        address = f"{up}file/{number}"
        return {"src": address, "kind": kind, "full": address}


def _newest(one: RunFolder) -> float:
    try:
        return (one.folder / "metrics.jsonl").stat().st_mtime
    except OSError:
        return 0.0


def _end_with_input(server: Server) -> None:
    sys.stdin.buffer.read()
    server.shutdown()
