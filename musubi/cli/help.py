"""The text of `--help`: one entry for each option, no name ever cut short."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from musubi.config.commands import COMMANDS, Command
from musubi.errors import counted

if TYPE_CHECKING:
    from musubi.config.fields import Flag

GROUPS = {
    "cache": "Prepare a dataset: encode it once, check it, look at it.",
    "lora": "Work on LoRA files.",
}
MODELS = (
    ("models", "List architectures, their tasks, and the files each needs."),
    ("models show NAME", "Show the files of one architecture, and the options they fill."),
)
_COLUMN = 30


def overview(group: str | None = None) -> str:
    """The commands, or those of one group."""
    chosen = [c for c in COMMANDS if group is None or c.words[0] == group]
    rows = [(c.name, c.help) for c in chosen]
    if group is None:
        rows = [*MODELS, *rows]
    about = GROUPS.get(group or "") or (
        "Train LoRAs for video diffusion transformers on ordinary GPUs, and generate with them."
    )
    usage = " ".join(["Usage: musubi", *([group] if group else []), "COMMAND [OPTIONS]"])
    blocks = [usage, _wrapped(about, 0), _section("Commands", rows)]
    if group is None:
        own = [
            ("--help", "Show this; behind a command, its options."),
            ("--version", "Show the version."),
            ("--debug", "Show the traceback of a failure."),
            ("--install-completion", "Install completion for the current shell."),
            ("--show-completion", "Show the completion script, to copy it."),
        ]
        blocks.append(_section("Options", own))
    return "\n\n".join(blocks) + "\n"


def of_command(
    command: Command,
    options: Mapping[str, Flag],
    own: Iterable[Flag],
    names: Sequence[str] = (),
    *,
    left: int = 0,
) -> str:
    """Every option of a command, by group.

    Args:
        command: The command.
        options: Its options, with those of the architecture when one was given.
        own: Those of the command line itself.
        names: Architectures to choose from, when none was given.
        left: How many options are not among these.
    """
    usage = f"Usage: musubi {command.name}"
    if command.positional:
        usage += f" {options[command.positional].metavar}..."
    groups: dict[str, list[tuple[str, str]]] = {"Options": []}
    for flag in [*own, *options.values()]:
        head = flag.metavar if flag.name == command.positional else _head(flag)
        groups.setdefault(flag.group, []).append((head, described(flag)))
    blocks = [f"{usage} [OPTIONS]", _wrapped(command.help, 0)]
    blocks += [_section(title, rows) for title, rows in groups.items() if rows]
    if names:
        known = " or ".join(f"--arch {name}" for name in names)
        blocks.append(
            _wrapped(f"Add {known} to see the model files and the options of that architecture.", 0)
        )
    if left:
        blocks.append(f"{counted(left, 'more option')}: musubi {command.name} --help all")
    return "\n\n".join(blocks) + "\n"


def described(flag: Flag) -> str:
    """Its help with the default and the other names behind it."""
    from musubi.config.fields import shown

    notes = [f"also --{alias}" for alias in flag.aliases]
    if flag.required:
        notes.insert(0, "needed")
    elif shown(flag.default):
        notes.insert(0, f"default: {shown(flag.default)}")
    return flag.help + (f" [{'; '.join(notes)}]" if notes else "")


def _head(flag: Flag) -> str:
    if flag.words == 0:
        return f"--{flag.name}" + (f", --no_{flag.name}" if flag.default is True else "")
    more = " ..." if flag.words == -1 else ""
    return f"--{flag.name} {flag.metavar}{more}"


def _section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"{title}:"]
    for head, text in rows:
        body = _wrapped(text, _COLUMN)
        if len(head) + 4 <= _COLUMN:
            lines.append(f"  {head}".ljust(_COLUMN) + body.lstrip())
        else:
            lines += [f"  {head}", body]
    return "\n".join(lines)


def _wrapped(text: str, indent: int) -> str:
    width = min(max(60, shutil.get_terminal_size().columns), 120)
    space = " " * indent
    return textwrap.fill(
        text, width, initial_indent=space, subsequent_indent=space, break_on_hyphens=False
    )
