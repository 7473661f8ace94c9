"""`--notify`: a notification when a command has ended, by the terminal's bell or to an address."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from musubi.errors import ConfigError, MusubiError

_TIMEOUT = 10.0


def check(way: str) -> None:
    """Refuse what is neither the bell nor an address.

    Raises:
        ConfigError: It is neither.
    """
    if way != "bell" and not way.startswith(("https://", "http://")):
        raise ConfigError(
            f"--notify {way!r} is neither 'bell' nor an address.",
            fix="Write --notify bell, or --notify https://ntfy.sh/NAME.",
        )


@contextmanager
def told(way: str | None, what: str) -> Iterator[None]:
    """Send a notification at the end of the block, even if it fails.

    Args:
        way: "bell", an address that takes a text by POST, or None for nothing.
        what: The command.
    """
    if way is None:
        yield
        return
    check(way)
    began = time.monotonic()
    try:
        yield
    except BaseException as error:
        reason = error.what if isinstance(error, MusubiError) else type(error).__name__
        _send(way, f"{what} ended after {_minutes(began)}: {reason}")
        raise
    _send(way, f"{what} is done after {_minutes(began)}.")


def _send(way: str, text: str) -> None:
    """Once; what fails is a warning."""
    from musubi.cli.report import bell, terminal

    if way == "bell":
        bell()
        return
    request = urllib.request.Request(
        way, data=text.encode(), headers={"Title": "musubi", "Content-Type": "text/plain; charset=utf-8"}
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT):
            pass
    except (OSError, ValueError) as error:
        terminal().warn(f"--notify: nobody could be told: {error}.")


def _minutes(began: float) -> str:
    seconds = round(time.monotonic() - began)
    return f"{seconds // 60} min" if seconds >= 60 else f"{seconds} s"
