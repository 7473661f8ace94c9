"""The command line: parses the words, and calls the command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musubi.stopping import Watch


def main(argv: Sequence[str] | None = None) -> None:
    """The `musubi` command.

    Args:
        argv: The words after the program's name; None: those of this process.

    Raises:
        SystemExit: Always: 0; 2 for errors that the user can fix; 1 for unexpected errors; 130 or
            143 when stopped.
    """
    from musubi import stopping
    from musubi.cli import failures
    from musubi.cli.report import safe_streams

    safe_streams()
    if sys.platform == "linux":
        # Segments that can grow: memory that is freed in pieces can be used again, so less of it is
        # wasted.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with _watched(final=argv is None), failures.told(debug):
        stopping.go_on_with(stopping.command_line(["musubi", *words]))
        completing = _words_to_complete()
        if completing is None and _answered(words):
            return
        from musubi.cli import app

        application, args = app.build(
            words if completing is None else completing,
            debug=debug,
            completing=completing is not None,
        )
        application(args=args, prog_name="musubi")


def _watched(*, final: bool) -> Watch:
    """Ends the command when a signal asks for it."""
    from musubi.cli import failures
    from musubi.stopping import Watch
    from musubi.weights import temporary

    return Watch(temporary.forget_all, failures.stopped, final=final)


def _answered(words: list[str]) -> bool:
    """Answer what needs no parser: help, the version, a command that does not exist."""
    from musubi.cli import help
    from musubi.cli.report import page
    from musubi.cli.words import unknown_command
    from musubi.config.commands import COMMANDS, typed
    from musubi.errors import ConfigError

    asked = bool({"--help", "-h"} & set(words))
    group = words[0] if words and words[0] in help.GROUPS else None
    command = typed(words)
    if words[:1] == ["--version"]:
        from musubi import __version__

        page(f"musubi {__version__}\n")
    elif not words or words[0] in ("--help", "-h"):
        page(help.overview())
    elif group is not None and (len(words) == 1 or words[1] in ("--help", "-h")):
        page(help.overview(group))
    elif command is not None and asked:
        from musubi.cli.line import CommandLine

        rest = words[len(command.words) :]
        whole = any(
            word in ("--help", "-h") and rest[i + 1 : i + 2] == ["all"]
            for i, word in enumerate(rest)
        )
        page(CommandLine(command, rest, lenient=True).help(whole=whole))
    elif words[0].startswith("-") and words[0] not in ("--install-completion", "--show-completion"):
        raise ConfigError(
            f"`musubi` has no option {words[0]!r}.", fix="Options stand behind a command."
        )
    elif words[0] == "models" and command is None:
        _check_models(words[1:])
        return False
    else:
        wrong = unknown_command(words, [*(c.words for c in COMMANDS), ("models",)])
        if wrong is not None:
            raise wrong
        return False
    return True


def _check_models(words: list[str]) -> None:
    """Refuse what `musubi models` does not take."""
    from musubi import registry
    from musubi.errors import ConfigError, did_you_mean

    names = [word for word in words if not word.startswith("-")]
    if names == ["show"] and not {"--help", "-h"} & set(words):
        fix = "Write " + " or ".join(f"`musubi models show {n}`" for n in registry.names()) + "."
        raise ConfigError("`musubi models show` needs the name of an architecture.", fix=fix)
    if names and names[0] in registry.names():
        fix = f"Write `musubi models show {names[0]}`."
    elif names and names[0] != "show":
        fix = did_you_mean(names[0], ["show", "fetch", "find"])
    else:
        return
    raise ConfigError(f"`musubi models` has no command {names[0]!r}.", fix=fix)


def _words_to_complete() -> list[str] | None:
    """The words before the cursor when a shell asks for completions, else None."""
    if not os.environ.get("_MUSUBI_COMPLETE", "").startswith("complete"):
        return None
    import shlex

    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    try:
        return shlex.split(line)[1:]
    except ValueError:  # a quote that is still open
        return line.split()[1:]
