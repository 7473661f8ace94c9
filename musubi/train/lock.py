"""A lock file in the run's folder, so that two runs of one name never write there at the same time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from typing import Any

from musubi.errors import ConfigError, RunError, system_fix, system_reason
from musubi.train.checkpoints import Names
from musubi.untrusted import parse_json, read_bytes
from musubi.weights import temporary as temporaries
from musubi.weights.temporary import Owner

BEAT = 30.0
"""Seconds between updates of the lock file, which tell other computers that this run is alive."""

SILENT = 300.0
"""Seconds without an update after which a run on another computer counts as ended."""

_UNWRITTEN = 10.0


class Lock:
    """The lock of a run, held while the run writes. Use it as a context manager.

    Args:
        names: Of the run's files.

    Raises:
        ConfigError: On entering: another run of this name is still running.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self.path = names.own / ".lock"
        me = Owner.this()
        facts = {
            "pid": me.pid,
            "host": me.host,
            "computer": socket.gethostname(),
            "started": temporaries.started(me.pid),
            "time": int(time.time()),
        }
        self._content = json.dumps(facts).encode()
        self._ended = threading.Event()

    def __enter__(self) -> Lock:
        for _ in range(3):
            try:
                self._create()
            except FileExistsError:
                self._clear()
                continue
            except OSError as error:
                raise RunError(
                    f"{self.path} could not be written: {system_reason(error)}.",
                    fix=system_fix(error),
                ) from error
            threading.Thread(target=self._beat, name="lock", daemon=True).start()
            return self
        raise self._refused({})

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            if self.path.read_bytes() == self._content:
                self.path.unlink()

    def _create(self) -> None:
        handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(self._content)

    def _clear(self) -> None:
        """Remove the lock of a run that has ended.

        Raises:
            ConfigError: The run is still running.
        """
        try:
            seen = read_bytes(self.path)
            age = self._age()
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise self._refused({}) from error
        facts = _facts(seen)
        if age < _UNWRITTEN if not facts else _alive(facts, age):
            raise self._refused(facts)
        # Renamed first: another process may have put its own lock there meanwhile.
        aside = temporaries.new_name(self.path.parent)
        try:
            self.path.rename(aside)
            if aside.read_bytes() != seen:
                aside.rename(self.path)
        except FileNotFoundError:
            pass
        finally:
            temporaries.forget(aside)

    def _age(self) -> float:
        """Seconds since the last update of the lock file, by the clock of the disk."""
        now = temporaries.new_name(self.path.parent)
        try:
            now.touch()
            return now.stat().st_mtime - self.path.stat().st_mtime
        finally:
            temporaries.forget(now)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _refused(self, facts: dict[str, Any]) -> ConfigError:
        who = f"Process {facts['pid']} on {facts['computer']}" if facts else "Another process"
        return ConfigError(
            f"{who} trains {self.names.name!r} in {self.names.folder} at this moment.",
            fix=f"Give another --output_name, or stop that run; if it has ended, delete {self.path}.",
        )


def _facts(content: bytes) -> dict[str, Any]:
    try:
        facts = parse_json(content)
        known = {"pid": int, "host": str, "computer": str}
        return facts if all(type(facts[name]) is kind for name, kind in known.items()) else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _alive(facts: dict[str, Any], age: float) -> bool:
    owner = Owner(facts["pid"], facts["host"])
    if owner.here:
        # The process number may belong to another process by now.
        same = facts.get("started") in (0, None, temporaries.started(owner.pid))
        return owner.alive and same and owner.pid != os.getpid()
    return age < SILENT
