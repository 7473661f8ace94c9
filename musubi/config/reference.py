"""The table of every option, written into `docs/options.md` by `python -m musubi.config.reference`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from musubi.config.commands import COMMANDS, Command, architectures
from musubi.config.fields import Flag, flags, shown
from musubi.plugin.architecture import Architecture

HEAD = """\
# Options

This page is generated from the code by `nox -s reference`; edit the options, not the page.

Every option is a flag (`--learning_rate 1e-4`) and a key of the file given by `--config`
(`learning_rate = 1e-4`), in whatever section.
`-` and `_` are the same.
A list takes several words (`--x a b`) and may be repeated (`--x a --x b`).
In a list of files, `*`, `?` and `[ab]` stand for what matches, sorted by name, in every shell.
A plain flag takes none; `--no_x` turns it off again.
Flags win over the file, the file over the defaults.
Every command takes `--config`, `--debug` and `--help`, and those that need an architecture `--arch`.
"""


def reference() -> str:
    """The page: for each command its own options, then what each built-in architecture adds."""
    built_in = [a for a in architectures() if a.runtime.address.startswith("musubi.")]
    parts = [HEAD]
    for command in COMMANDS:
        parts.append(f"## musubi {command.name}\n\n{command.help}\n")
        own = flags(command.options(None))
        groups: dict[str, list[Flag]] = {}
        for flag in own.values():
            groups.setdefault(flag.group, []).append(flag)
        parts += [f"### {title}\n\n{_table(rows)}" for title, rows in groups.items()]
        parts += _retired(command)
        if command.place is not None:
            parts += [_added(command, architecture, own) for architecture in built_in]
    return "\n".join(parts)


def _added(command: Command, architecture: Architecture, own: Iterable[str]) -> str:
    known = set(own)
    rows = [f for f in flags(command.options(architecture)).values() if f.name not in known]
    if not rows:
        return ""
    return f"### With `--arch {architecture.name}`\n\n{_table(rows)}"


def _retired(command: Command) -> list[str]:
    old = {r.name for r in command.retired()} - set(flags(command.options(None)))
    if not old:
        return []
    names = ", ".join(f"`--{name}`" for name in sorted(old))
    return [f"Old flags, accepted and answered with a line: {names}.\n"]


def _table(rows: Iterable[Flag]) -> str:
    lines = ["| option | value | default | meaning |", "|---|---|---|---|"]
    for flag in rows:
        name = f"`--{flag.name}`" + "".join(f", `--{alias}`" for alias in flag.aliases)
        value = _cell(flag.metavar + (" ..." if flag.words == -1 else ""))
        default = "needed" if flag.required else _cell(shown(flag.default))
        meaning = flag.help.replace("|", "\\|")
        lines.append(f"| {name} | {value} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    escaped = text.replace("|", "\\|")
    return f"`{escaped}`" if escaped else ""


def main() -> None:
    """Write the page to the path given, `docs/options.md` when none is."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/options.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(reference(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
