"""A run's settings in the groups of `--help`; settings that differ from the defaults come first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musubi import registry
from musubi.config import resolve
from musubi.config.commands import typed
from musubi.config.fields import Flag, flags, shown
from musubi.errors import MusubiError

SECRET = ("token", "key", "password")


def plain(path: Path) -> dict[str, str]:
    """Option → its value in words, of a `config.toml`; empty when it cannot be read."""
    try:
        file = resolve.read_file(path)
    except MusubiError:
        return {}
    values = {"arch": file.arch, **file.values}
    return {
        name: shown(value) or str(value)
        for name, value in values.items()
        if value is not None and not any(name.endswith(word) for word in SECRET)
    }


def groups(path: Path) -> list[dict[str, Any]]:
    """[{title, rows: [{name, value, chosen}]}]: chosen is what differs from the default."""
    values = plain(path)
    known = _flags(values.get("arch"))
    found: dict[str, list[dict[str, Any]]] = {}
    for name, value in values.items():
        flag = known.get(name)
        title = "Options" if flag is None else flag.group
        default = None if flag is None else (shown(flag.default) or str(flag.default))
        row = {"name": name, "value": value, "chosen": value != default}
        found.setdefault(title, []).append(row)
    return [{"title": title, "rows": rows} for title, rows in found.items()]


def generation(path: Path, lora: str) -> str:
    """The command that generates with a LoRA of this run, as far as the settings say; else empty."""
    values = plain(path)
    arch, known = values.get("arch"), _flags(values.get("arch"), "generate")
    if arch is None or not known or values.get("full") == "on":
        return ""
    words = [f"musubi generate --arch {arch}"]
    if "task" in values:
        words.append(f"--task {values['task']}")
    words += [
        f"--{name} {_quoted(values[name])}"
        for name, flag in known.items()
        if flag.group == "Models" and name in values
    ]
    return " ".join([*words, f"--lora_weight {lora}", '--prompt "…"', "--save_path out"])


def _quoted(text: str) -> str:
    return f'"{text}"' if any(c in text for c in " '()[]&;") else text


def _flags(arch: str | None, command: str = "train") -> Mapping[str, Flag]:
    found = typed([command])
    if arch is None or found is None:
        return {}
    try:
        return flags(found.options(registry.find(arch)))
    except MusubiError:  # an architecture that is not installed here
        return {}
