"""Read prompts that the user types."""

from __future__ import annotations

from collections.abc import Callable, Iterator

PROMPT = "> "


def ask(read: Callable[[], str] | None = None) -> Iterator[str]:
    """Yield each typed line until the input ends; blank lines are skipped.

    With `prompt_toolkit` installed, lines can be edited, and earlier lines recalled.
    """
    read = read if read is not None else _reader()
    while True:
        try:
            line = read()
        except EOFError:
            return
        if line.strip():
            yield line


def _reader() -> Callable[[], str]:
    try:
        from prompt_toolkit import PromptSession
    except ImportError:
        return lambda: input(PROMPT)
    import sys

    if not sys.stdin.isatty():  # a pipe has no keys to edit with
        return lambda: input(PROMPT)
    session = PromptSession()
    return lambda: session.prompt(PROMPT)
