"""How an error is shown: one line that says what failed, one that says what to do, and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from musubi import stopping
from musubi.errors import MusubiError, StoppedError, system_fix, system_reason


@contextmanager
def told(debug: bool) -> Iterator[None]:
    """Turn whatever is raised inside into a message on stderr and an exit code.

    Args:
        debug: Show the traceback as well.
    """
    try:
        yield
        sys.stdout.flush()  # here, where a reader that has gone is still caught
    except KeyboardInterrupt:
        stopped()
        raise SystemExit(stopping.exit_code()) from None
    except BrokenPipeError:
        # The reader (`| head`) has gone; nothing may be flushed into the closed pipe on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except StoppedError as error:
        stopped(error.what, error.fix)
        raise SystemExit(stopping.exit_code()) from None
    except MusubiError as error:
        _say(error.what, error.fix, debug)
        raise SystemExit(error.exit_code) from None
    except Exception as error:  # the last place to catch an error: every error must be shown
        what, fix = _unexpected(error)
        _say(what, fix if not debug else None, debug)
        raise SystemExit(1) from None


def _unexpected(error: Exception) -> tuple[str, str]:
    name, text = type(error).__name__, " ".join(str(error).split())
    if name == "OutOfMemoryError":
        return (
            f"The GPU's memory is full: {text.partition(' If reserved')[0]}",
            "Lower it: smaller sizes or batches, --gradient_checkpointing, --fp8_base, --blocks_to_swap.",
        )
    if isinstance(error, OSError) and error.errno is not None:
        where = "A file" if error.filename is None else str(error.filename)
        return f"{where} could not be used: {system_reason(error)}.", system_fix(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return (
            f"The computer's memory is full: {text or name}.",
            "Close other programs, or lower the sizes.",
        )
    if (
        isinstance(error, ModuleNotFoundError)
        and error.name
        and not error.name.startswith("musubi")
    ):
        return (
            f"The package {error.name.partition('.')[0]!r} is not installed.",
            "Install it with pip, or reinstall musubi.",
        )
    said = f"unexpected {name}: {text}" if text else f"unexpected {name}"
    return said if said.endswith(".") else f"{said}.", "Run again with --debug to see where."


def stopped(what: str = "Stopped.", way_on: str | None = None) -> None:
    """Show that the command was stopped, and on a separate line the command to continue."""
    from musubi.cli.report import ending

    line = way_on
    if line is None and stopping.way_on() is not None:
        line = f"Go on with: {stopping.way_on()}"
    with contextlib.suppress(OSError):  # the terminal may be gone
        ending(what, line)
    stopping.told()


def _say(what: str, fix: str | None, debug: bool) -> None:
    from musubi.cli.report import failure

    failure(what, fix, traceback=debug)
