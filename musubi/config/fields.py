"""One option seen from outside: its name, how many words follow it, what they may be.

The command line, the reader of TOML files and the generated reference all ask here, so that a
field of a model is described once.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

WORDS: Mapping[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "BOOL"}


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What the words of one option look like.

    Args:
        name: With underscores, without dashes.
        words: How many words follow it: 0 for a plain flag, -1 for any number.
        help: One sentence.
        group: The panel it is shown in.
        metavar: What stands for its value in help.
        choices: The allowed words, when they are few.
        aliases: Other names it is known by.
        default: The value if the option is not given.
        required: Whether the option must be given.
        number: Whether a word that reads as a number is meant as one, though text is allowed too.
    """

    name: str
    words: int
    help: str = ""
    group: str = "Options"
    metavar: str = ""
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    default: Any = None
    required: bool = False
    number: bool = False

    def read(self, words: str | Sequence[str] | bool) -> Any:
        """The words of the command line as the model takes them: one text, or a list of them."""
        if isinstance(words, bool):
            return words
        if isinstance(words, str):
            return as_number(words) if self.number else words
        return [as_number(word) for word in words] if self.number else list(words)


def flags(model: type[BaseModel]) -> dict[str, Flag]:
    """Name → description, in the order of declaration."""
    return {name: _flag(name, field) for name, field in model.model_fields.items()}


def names(known: Iterable[Flag]) -> dict[str, str]:
    """Every name, aliases included → the option's own name."""
    known = list(known)
    found = {alias.replace("-", "_"): flag.name for flag in known for alias in flag.aliases}
    return found | {flag.name: flag.name for flag in known}


def shown(value: Any) -> str:
    """A default as a person would write it; empty when there is none to show."""
    if value is None or value is False or value == "" or value == () or value == []:
        return ""
    if value is True:
        return "on"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value)
    return str(value)


def as_number(word: str) -> int | float | str:
    """The word as a number when it reads as one."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _flag(name: str, field: FieldInfo) -> Flag:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    members = _members(field.annotation)
    words, item = _shape(members)
    choices = _choices(item)
    metavar = extra.get("metavar") or ("|".join(choices) if choices else _word(item))
    aliases = extra.get("aliases")
    return Flag(
        name=name,
        words=words,
        help=field.description or "",
        group=str(extra.get("group") or "Options"),
        metavar="" if words == 0 else str(metavar),
        choices=choices,
        aliases=tuple(str(a) for a in aliases) if isinstance(aliases, list) else (),
        default=None if field.is_required() else field.get_default(call_default_factory=True),
        required=field.is_required(),
        number=str in item and bool({int, float} & set(item)),
    )


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, None left out; `Annotated` is looked through."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(
            m for a in get_args(annotation) for m in _members(a) if m is not types.NoneType
        )
    return () if annotation is types.NoneType else (annotation,)


def _shape(members: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
    """How many words, and the alternatives for one of them."""
    for member in members:
        origin, args = get_origin(member), get_args(member)
        if origin is tuple and args and args[-1] is not Ellipsis:
            return len(args), tuple(dict.fromkeys(m for a in args for m in _members(a)))
        if origin in (tuple, list, set, frozenset) or (
            isinstance(origin, type) and issubclass(origin, Sequence)
        ):
            return -1, _members(args[0]) if args else (str,)
    return (0, members) if members == (bool,) else (1, members)


def _choices(item: tuple[Any, ...]) -> tuple[str, ...]:
    """The allowed words when every alternative is a fixed set of them."""
    found: list[str] = []
    for member in item:
        if get_origin(member) is Literal:
            found += [str(value) for value in get_args(member)]
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            found += [str(value.value) for value in member]
        else:
            return ()
    return tuple(dict.fromkeys(found))


def _word(item: tuple[Any, ...]) -> str:
    parts = [
        "|".join(_choices((m,))) if get_origin(m) is Literal else WORDS.get(m, "VALUE")
        for m in item
    ]
    return "|".join(dict.fromkeys(parts))
