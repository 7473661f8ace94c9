"""The words of a command line in the one spelling that the parser takes.

`--learning-rate` becomes `--learning_rate`, an alias the option's own name, `--x a b` of a list
`--x a --x b`; old flags are taken out, and an unknown one is refused with the nearest right one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from musubi.errors import ConfigError, nearest

if TYPE_CHECKING:
    from musubi.config.fields import Flag
    from musubi.config.options import Retired

_FLAG = re.compile(r"--[A-Za-z]")
_NUMBER = re.compile(r"-\.?\d")


@dataclass
class Words:
    """A command line that was understood.

    Args:
        args: For the parser.
        off: Plain flags that were turned off, as `--no-x`.
        notes: One line for each old flag.
    """

    args: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_flag(word: str) -> bool:
    """Whether the word is an option rather than a value; `-1` and `-0.5` are values."""
    return _FLAG.match(word) is not None


def plain(word: str) -> str:
    """`--learning-rate=1` → `learning_rate`."""
    return word[2:].partition("=")[0].replace("-", "_")


def value_of(words: Sequence[str], *options: str) -> str | None:
    """The value of the last of `options` (without dashes) among raw words, if any."""
    found = None
    for index, word in enumerate(words):
        if is_flag(word) and plain(word) in options:
            _, equals, value = word.partition("=")
            if equals:
                found = value
            elif index + 1 < len(words) and not is_flag(words[index + 1]):
                found = words[index + 1]
    return found


def canonical(
    words: Sequence[str],
    known: Mapping[str, Flag],
    *,
    aliases: Mapping[str, str],
    retired: Iterable[Retired] = (),
    refuse: Callable[[str, str], ConfigError],
    bare: bool = False,
) -> Words:
    """Rewrite the words behind a command.

    Args:
        words: As they were typed.
        known: The command's options, the CLI's own (`arch`, `config`, `debug`, `help`) among them.
        aliases: Every name → the option's own.
        retired: Old flags.
        refuse: (name, flag as typed) → the error for an unknown flag.
        bare: Whether words without an option mean something.

    Raises:
        ConfigError: An unknown flag, a value missing, a value behind a plain flag.
    """
    out = Words()
    old = {r.name: r for r in retired}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not is_flag(word):
            if not bare or _ends_list(word):
                raise _stray(word)
            out.args.append(word)
            continue
        name, typed = plain(word), word.partition("=")[0]
        inline = word.partition("=")[2] if "=" in word else None
        if name in aliases:
            flag = known[aliases[name]]
            if flag.words == 0:
                _no_value(typed, inline)
                out.args.append(f"--{flag.name}")
                out.off = [n for n in out.off if n != flag.name]
            else:
                values = _take(rest, flag.words, inline)
                _enough(typed, flag, values)
                out.args += _spelled(flag, values)
        elif name in old:
            _take(rest, old[name].takes, inline)
            out.notes.append(f"{typed}: {old[name].says}")
        elif name.startswith("no_") and _is_plain(known, aliases.get(name[3:])):
            _no_value(typed, inline)
            own = aliases[name[3:]]
            out.args = [a for a in out.args if a != f"--{own}"]
            out.off.append(own)
        else:
            raise refuse(name, typed)
    return out


def unknown_command(words: Sequence[str], known: Iterable[Sequence[str]]) -> ConfigError | None:
    """The error for a first word, or a second one behind a group, that names no command."""
    typed: list[str] = []
    for word in words:
        if word.startswith("-"):
            break
        choices = sorted(
            {k[len(typed)] for k in known if list(k[: len(typed)]) == typed and len(k) > len(typed)}
        )
        if not choices:
            break
        if word not in choices:
            place = " ".join(["musubi", *typed])
            close = nearest(word, choices)
            fix = f"Did you mean `{place} {close}`?" if close else f"Known: {', '.join(choices)}."
            return ConfigError(f"`{place}` has no command {word!r}.", fix=fix)
        typed.append(word)
    return None


def _is_plain(known: Mapping[str, Flag], name: str | None) -> bool:
    return name is not None and known[name].words == 0


def _take(rest: list[str], count: int, inline: str | None) -> list[str]:
    """The values of an option, taken off the front of `rest`; -1 takes all up to the next flag."""
    values = [] if inline is None else [inline]
    if inline is not None and count in (-1, 1):
        return values
    while rest and len(values) != count:
        if is_flag(rest[0]) or (count == -1 and _ends_list(rest[0])):
            break
        values.append(rest.pop(0))
    return values


def _ends_list(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NUMBER.match(word)


def _enough(typed: str, flag: Flag, values: list[str]) -> None:
    if flag.words > 1 and len(values) != flag.words:
        raise ConfigError(
            f"{typed} takes {flag.words} values, and {len(values)} came.",
            fix=f"Write {typed} {flag.metavar}.",
        )
    if not values:
        raise ConfigError(f"{typed} needs a value.", fix=f"Write {typed} {flag.metavar}.")


def _stray(word: str) -> ConfigError:
    return ConfigError(
        f"The word {word!r} belongs to no option.",
        fix="Options begin with `--`; a text with spaces stands in quotes.",
    )


def _no_value(typed: str, inline: str | None) -> None:
    if inline is not None:
        raise ConfigError(f"{typed} takes no value.", fix=f"Write {typed} alone.")


def _spelled(flag: Flag, values: list[str]) -> list[str]:
    if flag.words > 1:
        return [f"--{flag.name}", *values]
    return [f"--{flag.name}={value}" for value in values]
