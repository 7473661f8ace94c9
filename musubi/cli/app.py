"""Builds the Typer application for one command line.

Only the command that is typed gets its options, from its model and the architecture's
registration; the others are names with a line of help, so that nothing of theirs is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from musubi import registry
from musubi.cli import failures, models, notify
from musubi.cli.help import GROUPS
from musubi.cli.line import CommandLine, own_flags
from musubi.config.commands import COMMANDS, typed

if TYPE_CHECKING:
    from musubi.config.fields import Flag


def build(
    words: Sequence[str], *, debug: bool = False, completing: bool = False
) -> tuple[typer.Typer, list[str]]:
    """The application, and the words it should be given.

    Args:
        words: As typed, without the program's name.
        debug: Show tracebacks.
        completing: A shell wants the words completed: nothing may be refused.

    Raises:
        ConfigError: A word that the command does not know.
    """
    app = typer.Typer(name="musubi", no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    groups = {name: typer.Typer(help=text) for name, text in GROUPS.items()}
    groups["models"] = _models(debug)
    args = list(words)
    chosen = typed(words)
    for command in COMMANDS:
        home = groups[command.words[0]] if len(command.words) == 2 else app
        function: Callable[..., None] = _nothing
        if command is chosen:
            line = CommandLine(command, words[len(command.words) :], lenient=completing)
            args = [*command.words, *line.words.args]
            function = _function(line, debug)
        home.command(command.words[-1], help=command.help)(function)
    for name, group in groups.items():
        app.add_typer(group, name=name)
    return app, args


def _function(line: CommandLine, debug: bool) -> Callable[..., None]:
    """What Typer calls: its signature holds one parameter for each option."""

    def call(**given: Any) -> None:
        with failures.told(debug), notify.told(given.get("_notify"), f"musubi {line.command.name}"):
            line.run(given)

    parameters = []
    for name, flag in line.flags.items():
        if name == line.command.positional:
            settings = typer.Argument(help=flag.help)
            parameters.append(_parameter(name, list[str] | None, settings))
        else:
            parameters.append(_parameter(name, *_option(line, flag)))
    for name, flag in own_flags(line.command).items():
        if name != "help":  # Typer adds that one
            parameters.append(_parameter(f"_{name}", *_option(line, flag)))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _option(line: CommandLine, flag: Flag) -> tuple[Any, Any]:
    """The type of what an option hands over, its words unread, and Typer's description of it."""
    choices = line.completions(flag)
    settings = typer.Option(
        f"--{flag.name}" + (f"/--no_{flag.name}" if flag.default is True else ""),
        help=flag.help,
        autocompletion=_starting(choices) if choices else None,
    )
    kinds: dict[int, Any] = {0: bool | None, 1: str | None, -1: list[str] | None}
    if flag.words in kinds:
        return kinds[flag.words], settings
    return tuple.__class_getitem__((str,) * flag.words) | None, settings


def _parameter(name: str, kind: Any, settings: Any) -> inspect.Parameter:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind, settings])


def _starting(choices: Sequence[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [c for c in choices if c.startswith(incomplete)]

    return complete


def _models(debug: bool) -> typer.Typer:
    """The commands `models` and `models show`."""
    group = typer.Typer(help="List architectures, their tasks, and the files each needs.")

    @group.callback(invoke_without_command=True)
    def all_models(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            with failures.told(debug):
                models.list_all()

    @group.command(help="Show the files of one architecture, and the options they fill.")
    def show(
        name: Annotated[
            str,
            typer.Argument(metavar="NAME", autocompletion=registry.names),
        ],
    ) -> None:
        with failures.told(debug):
            models.show_one(name)

    return group


def _root(
    version: Annotated[bool, typer.Option(help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option(help="Show the traceback of a failure.")] = False,
) -> None:
    """Train LoRAs for video diffusion transformers, and generate with them."""


def _nothing() -> None:
    """Stands for a command that was not typed."""
