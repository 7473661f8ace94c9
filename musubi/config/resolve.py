"""Flags, a TOML file and the defaults become one checked value: flags win over file over defaults."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from musubi.config.fields import Flag, flags, names, shown
from musubi.config.options import Options, Retired
from musubi.config.wildcards import PATHS, expanded
from musubi.errors import ConfigError, did_you_mean, nearest
from musubi.plugin.architecture import Architecture
from musubi.untrusted import TextError, parse_toml, read_text, reason

Model = TypeVar("Model", bound=Options)
Elsewhere = Callable[[str], "str | None"]


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """A TOML file with its sections taken away.

    Args:
        path: The file.
        values: Key, with underscores → value.
        arch: The value of the key `arch`.
        runs: Names of the runs that the file has in tables `[[run]]`.
        run: The one whose options are in `values`, over those that all share.
    """

    path: Path
    values: Mapping[str, Any]
    arch: str | None = None
    runs: tuple[str, ...] = ()
    run: str | None = None


@dataclass
class Notes:
    """What should be said about the words that were understood: one line each."""

    lines: list[str] = field(default_factory=list)


def read_file(path: str | Path, run: str | None = None) -> ConfigFile:
    """Read `--config`; ".toml" is put behind the name when there is no such file without it.

    Args:
        path: The file.
        run: The name of one of its runs.

    Raises:
        ConfigError: The file is missing, is not TOML, gives one key twice, or has no such run.
    """
    path = _existing(Path(path))
    try:
        text = read_text(path)
    except (OSError, TextError) as error:
        raise ConfigError(
            f"{path} cannot be read: {reason(error)}.", fix="Give a file in UTF-8."
        ) from error
    try:
        content = parse_toml(text)
    except TextError as error:
        raise ConfigError(
            f"{path} is not TOML: {error}.",
            fix="Texts stand in quotes, lists in brackets; a Windows path stands in 'single' quotes.",
        ) from error
    tables = _runs(path, content)
    values = _once(path, content)
    if run is not None and run not in tables:
        raise ConfigError(
            f"{path} has no run {run!r}.",
            fix=did_you_mean(run, tables) if tables else "Leave out --run: the file is one run.",
        )
    if tables:
        # Without a name, the first one stands for what all have in common.
        values |= _once(path, tables[run if run is not None else next(iter(tables))])
    arch = values.pop("arch", None)
    if arch is not None and not isinstance(arch, str):
        raise ConfigError(f"'arch' in {path} is {arch!r}.", fix="Write the name in quotes.")
    return ConfigFile(path=path, values=values, arch=arch, runs=tuple(tables), run=run)


def _runs(path: Path, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → options of the tables `[[run]]`, which are taken out of the content."""
    tables = content.get("run")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        return {}
    del content["run"]
    found: dict[str, dict[str, Any]] = {}
    for number, table in enumerate(tables, start=1):
        name = _once(path, table).get("output_name")
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"Run {number} of {path} has no output_name.",
                fix="Give each [[run]] an output_name of its own: its files are called so.",
            )
        if name in found:
            raise ConfigError(
                f"{path} has two runs with the output_name {name!r}.",
                fix="Give each [[run]] an output_name of its own: its files are called so.",
            )
        found[name] = table
    return found


def _once(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Key, with underscores → value, of all sections."""
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    for key, value, section in _flat(content, ""):
        name = key.replace("-", "_")
        if name in values and values[name] != value:
            raise ConfigError(
                f"{path} gives {key!r} twice, in {where[name]} and in {section}.",
                fix="Keep one of them.",
            )
        values[name], where[name] = value, section
    return values


def resolve(
    model: type[Model],
    given: Mapping[str, Any],
    file: ConfigFile | None = None,
    *,
    retired: Iterable[Retired] = (),
    elsewhere: Elsewhere = lambda key: None,
    notes: Notes | None = None,
) -> Model:
    """The checked value of a command's options.

    Args:
        model: The command's model, extended by the architecture.
        given: Option → value, from the command line.
        file: What `--config` holds.
        retired: Old keys that the file may hold.
        elsewhere: Says to what command or architecture a key belongs that this one does not have.
        notes: Takes the lines about old keys.

    Raises:
        ConfigError: A key or a value that cannot be used, each named with what is allowed.
    """
    known = flags(model)
    values = {} if file is None else _from_file(file, known, retired, elsewhere, notes or Notes())
    values = _with_wildcards({**values, **given}, known, set(given), file)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found: dict[Any, list[ErrorDetails]] = {}
        for one in error.errors():
            found.setdefault(one["loc"][:1], []).append(one)
        said = [_explain(errors, known, set(given), file) for errors in found.values()]
        raise said[0] if len(said) == 1 else ConfigError("\n".join(map(str, said))) from error


def _with_wildcards(
    values: Mapping[str, Any], known: Mapping[str, Flag], given: set[str], file: ConfigFile | None
) -> dict[str, Any]:
    """The values, with wildcards expanded where an option takes any number of paths."""
    found = dict(values)
    for name, flag in known.items():
        if flag.words == -1 and flag.metavar in PATHS and isinstance(values.get(name), list):
            where = f"--{name}" if file is None or name in given else f"{name!r} in {file.path}"
            found[name] = expanded(values[name], where)
    return found


def unknown(
    key: str, known: Mapping[str, Flag], *, place: str, shown_as: str, elsewhere: Elsewhere
) -> ConfigError:
    """The error for a flag or a key that the command does not have.

    Args:
        key: With underscores.
        known: The options that the command has.
        place: The command or the file.
        shown_as: The key as it was written.
        elsewhere: As in `resolve`.
    """
    every = names(known.values())
    close = nearest(key, every)
    belongs = elsewhere(key)
    if belongs is not None:
        fix = belongs
    elif close is not None:
        fix = f"Did you mean {shown_as[: len(shown_as) - len(shown_as.lstrip('-'))]}{every[close]}?"
    else:
        fix = "`--help` lists those that there are." if shown_as[:1] == "-" else "Remove it."
    return ConfigError(f"{place} has no option {shown_as!r}.", fix=fix)


def to_toml(config: Options, architecture: Architecture | None = None, **more: Any) -> str:
    """Every resolved value as TOML that `read_file` and `resolve` turn into an equal value.

    Args:
        config: The checked value; options that are None are left out.
        architecture: Written as the key `arch`.
        more: Further keys, put first.
    """
    head = {} if architecture is None else {"arch": architecture.name}
    values = {**more, **head, **config.model_dump(mode="python")}
    return "".join(f"{k} = {_toml(v)}\n" for k, v in values.items() if v is not None)


def _existing(path: Path) -> Path:
    if path.is_file():
        return path
    with_suffix = path.with_name(path.name + ".toml")
    if with_suffix.is_file():
        return with_suffix
    tried = f"{path}" if path.suffix == ".toml" else f"{path} (or {with_suffix.name})"
    near = []
    if path.parent.is_dir():
        near = [p.name for p in sorted(path.parent.iterdir()) if p.suffix == ".toml"]
    close = nearest(with_suffix.name if path.suffix != ".toml" else path.name, near)
    raise ConfigError(
        f"The config file {tried} does not exist.",
        fix=f"Did you mean {path.parent / close}?" if close else "Check the path after --config.",
    )


def _flat(table: Mapping[str, Any], section: str) -> Iterable[tuple[str, Any, str]]:
    """(key, value, section) of all sections; what a section is called means nothing."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"[{key}]")
        else:
            yield key, value, section or "the top"


def _from_file(
    file: ConfigFile,
    known: Mapping[str, Flag],
    retired: Iterable[Retired],
    elsewhere: Elsewhere,
    notes: Notes,
) -> dict[str, Any]:
    every = names(known.values())
    old = {r.name: r for r in retired}
    found: dict[str, Any] = {}
    if file.arch is not None and "arch" in known:
        found["arch"] = file.arch  # of a command that can do without
    for key, value in file.values.items():
        if key in every:
            flag = known[every[key]]
            if flag.words == -1 and not isinstance(value, list):
                value = [value]
            found[flag.name] = value
        elif key in old:
            notes.lines.append(f"{key} in {file.path.name}: {old[key].says}")
        else:
            raise unknown(key, known, place=str(file.path), shown_as=key, elsewhere=elsewhere)
    return found


def _explain(
    errors: list[ErrorDetails],
    known: Mapping[str, Flag],
    given: set[str],
    file: ConfigFile | None,
) -> ConfigError:
    """What is wrong with one option, as a sentence: option, value, what is allowed."""
    error = errors[0]
    cause = error.get("ctx", {}).get("error")
    flag = known.get(str(error["loc"][0])) if error["loc"] else None
    if flag is None:
        return ConfigError(_sentence(str(cause) if cause else error["msg"]))
    from_file = file is not None and flag.name not in given and flag.name in file.values
    name = f"{flag.name!r} in {file.path}" if from_file and file else f"--{flag.name}"
    value = error["input"]
    if error["type"] == "missing" and len(error["loc"]) == 1:
        return ConfigError(f"{name} is needed: {flag.help}", fix=_add(flag))
    if cause is not None:
        return ConfigError(f"{name} cannot be {_said(value)}: {_sentence(str(cause))}")
    if error["type"] in ("too_short", "too_long", "missing"):
        return ConfigError(
            f"{name} takes {flag.words} values, not {_said(value)}.", fix=f"Write {_example(flag)}."
        )
    if flag.choices:
        return ConfigError(
            f"{name} cannot be {_said(value)}.", fix=_among(str(value), flag.choices)
        )
    return ConfigError(f"{name} cannot be {_said(value)}.", fix=f"It must be {_allowed(errors)}.")


def _among(value: str, choices: tuple[str, ...]) -> str:
    close = nearest(value, choices)
    everything = f"Allowed: {', '.join(choices)}."
    return everything if close is None else f"{did_you_mean(value, choices)} {everything}"


def _allowed(errors: list[ErrorDetails]) -> str:
    """What the value must be; a union of types gives one error for each."""
    one_value = all(e["input"] is errors[0]["input"] for e in errors)
    kinds = [_kind(e) for e in errors] if one_value else [_kind(errors[0])]
    return " or ".join(dict.fromkeys(kinds))


def _kind(error: ErrorDetails) -> str:
    limits = error.get("ctx", {})
    kind = error["type"]
    for name, words in (
        ("gt", "more than"),
        ("ge", "at least"),
        ("lt", "less than"),
        ("le", "at most"),
    ):
        if name in limits:
            return f"{words} {limits[name]}"
    for start, words in (
        ("int_from_float", "a whole number"),
        ("int", "a whole number"),
        ("float", "a number"),
        ("bool", "true or false"),
        ("string", "text in quotes"),
        ("path", "a path in quotes"),
        ("list", "a list in brackets"),
        ("tuple", "a list in brackets"),
        ("finite", "a finite number"),
    ):
        if kind.startswith(start):
            return words
    return error["msg"].removeprefix("Input should be ").rstrip(".")


def _add(flag: Flag) -> str:
    return f"Add {_example(flag)}."


def _example(flag: Flag) -> str:
    default = shown(flag.default)
    return f"--{flag.name} {default or flag.metavar}".rstrip()


def _said(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"{' '.join(str(v) for v in value):.200}" or "empty"
    return f"{value!r:.200}"


def _sentence(text: str) -> str:
    text = text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(v) for v in value)}]"
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(str(getattr(value, "value", value)), ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )
