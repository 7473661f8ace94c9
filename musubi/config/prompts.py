"""Prompt lines and prompt files: `a cat --w 832 --h 480 --f 81 --d 7 --n blurry`.

An option begins with "--" and a letter, at the start of the line or behind a space; what stands
before the first one is the prompt, and nothing is searched in it. What a line may say follows from
the architecture: its inputs and its options bring letters of their own. The prompts of training's
previews share them but for one: `--g` is classifier-free guidance in a batch file and in
interactive use, and embedded guidance in previews.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from musubi.errors import ConfigError, did_you_mean
from musubi.plugin.architecture import Architecture
from musubi.untrusted import TextError, parse_json, parse_toml, read_text, reason

Kind = Literal["batch", "preview"]
Note = Callable[[str], None]
Entry = Callable[[], dict[str, Any]]
# What a preview is when its prompt does not say; the rest are the task's own defaults.
PREVIEW: Mapping[str, int] = {"width": 256, "height": 256, "frames": 1, "steps": 20}
_OPTION = re.compile(r"(?:^|(?<=\s))--(?=[A-Za-z])")


@dataclass(frozen=True)
class Letter:
    """What one letter sets.

    Args:
        key: The name of the value.
        kind: int, float or str.
        repeats: Whether it may be given several times; the value is a list.
    """

    key: str
    kind: type = str
    repeats: bool = False


_SHARED = {
    "w": Letter("width", int),
    "h": Letter("height", int),
    "f": Letter("frames", int),
    "d": Letter("seed", int),
    "s": Letter("steps", int),
    "fs": Letter("flow_shift", float),
    "l": Letter("guidance_scale", float),
    "n": Letter("negative_prompt"),
}
# Keys of prompt files in TOML and JSON → what a line's letters set.
_KEYS = {
    "frame_count": "frames",
    "video_length": "frames",
    "sample_steps": "steps",
    "infer_steps": "steps",
    "discrete_flow_shift": "flow_shift",
    "cfg_scale": "guidance_scale",
}


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """What a prompt may say.

    Args:
        letters: Letter → what it sets.
        keys: Other keys of prompt files in TOML and JSON → what they set.
        more: What prompt files may set and a line has no letter for.
        unused: Letters that mean something for other models only → what is said of them.
    """

    letters: Mapping[str, Letter] = field(default_factory=lambda: dict(_SHARED))
    keys: Mapping[str, str] = field(default_factory=lambda: dict(_KEYS))
    more: tuple[Letter, ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict[str, str])


def grammar(architecture: Architecture, kind: Kind = "batch") -> Grammar:
    """What prompts of an architecture may say: in batch files and interactive use, or in previews."""
    letters = dict(_SHARED)
    keys = dict(_KEYS)
    unused: dict[str, str] = {}
    if kind == "batch":
        letters |= {
            "g": Letter("guidance_scale", float),
            "mcrr": Letter("magcache_retention_ratio", float),
            "mct": Letter("magcache_threshold", float),
            "mck": Letter("magcache_k", int),
        }
    else:
        for name, other in (("--g", "--l"), ("guidance_scale", "cfg_scale")):
            unused[name.removeprefix("--")] = (
                f"{name} in the prompt of a preview is embedded guidance, which "
                f"{architecture.title} does not have; {other} is classifier-free guidance."
            )
        del keys["video_length"], keys["infer_steps"]
    more: list[Letter] = []
    for one in architecture.inputs:
        if one.flag is None:
            continue
        letter = Letter(one.flag, repeats=one.many and one.paths is None)
        if one.letter:
            letters[one.letter] = letter
        else:
            more.append(letter)
        keys |= dict.fromkeys(one.aliases, one.flag)
    for option in architecture.options:
        name = option.letter
        if kind == "preview" and option.preview_letter is not None:
            name = option.preview_letter
        kinds = option.type if option.type in (int, float, str) else str
        if "generate" not in option.commands:
            continue
        if name:
            letters[name] = Letter(option.name, kinds)
            unused.pop(name, None)
        elif kind == "batch" and option.type is not bool:
            more.append(Letter(option.name, kinds))
        keys |= dict.fromkeys(option.aliases, option.name)
        if kind == "preview" and name == "g":  # prompt files spell it out
            keys["guidance_scale"] = option.name
            unused.pop("guidance_scale", None)
    return Grammar(letters=letters, keys=keys, more=tuple(more), unused=unused)


def parse_line(
    text: str,
    says: Grammar | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    note: Note | None = None,
) -> dict[str, Any]:
    """One prompt line → what it sets, laid over `defaults`.

    Keys: prompt, width, height, frames, seed, steps, flow_shift, guidance_scale, negative_prompt,
    and what only some architectures have, such as the path of an image.

    >>> parse_line("a cat --w 64 --d 7")
    {'prompt': 'a cat', 'width': 64, 'seed': 7}

    Args:
        text: The line.
        says: What it may say; what every architecture takes, when None.
        defaults: Values for everything that the line does not set.
        note: Called with a message about each letter that is not used.

    Raises:
        ConfigError: An unknown letter, or a value that is not what the letter takes.
    """
    says = says or Grammar()
    prompt, *parts = _OPTION.split(text.strip())
    found: dict[str, Any] = {**(defaults or {}), "prompt": prompt.strip()}
    repeated: dict[str, list[Any]] = {}
    for part in parts:
        name, *rest = part.split(None, 1)
        word = rest[0].strip() if rest else ""
        if name.lower() in says.unused:
            if note is not None:
                note(says.unused[name.lower()])
            continue
        letter = says.letters.get(name.lower())
        if letter is None:
            raise ConfigError(
                f"The prompt line has --{name}, which is no option of prompts.",
                fix=f"Known: {', '.join('--' + n for n in says.letters)}.",
            )
        value = _value(letter.kind, word, f"--{name}")
        if letter.repeats:
            repeated.setdefault(letter.key, []).append(value)
        else:
            found[letter.key] = value
    return {**found, **repeated}


def read_prompt_file(
    path: str | Path,
    says: Grammar | None = None,
    *,
    note: Note | None = None,
) -> list[dict[str, Any]]:
    """The prompts of a `.txt`, `.toml` or `.json` file, in order; see `parse_line` for the keys.

    Lines that are blank or begin with `#` are left out. TOML has `[prompt]` with defaults and
    `[[prompt.subset]]`; JSON is a list of lines or of objects.

    Raises:
        ConfigError: The file cannot be read, or holds no prompt, or one of them is wrong.
    """
    found = [read() for _, read in read_entries(path, says, note=note)]
    if not found:
        raise ConfigError(f"{path} holds no prompt.", fix="Write one prompt a line.")
    return found


def read_entries(
    path: str | Path, says: Grammar | None = None, *, note: Note | None = None
) -> list[tuple[str, Entry]]:
    """The prompts of a file, each unread: where it stands, and what reads it and may refuse it.

    Raises:
        ConfigError: The file as a whole cannot be read.
    """
    path = Path(path)
    says = says or Grammar()
    suffix = path.suffix.lower()
    if suffix == ".toml":
        entries: list[Any] = _from_toml(_toml(path), path)
    elif suffix == ".json":
        entries = _from_json(_text(path), path)
    else:
        return [
            (f"{path}, line {number}", partial(parse_line, line, says, note=note))
            for number, line in read_lines(path)
        ]
    return [
        (
            f"{path}, prompt {number}",
            partial(parse_line, entry, says, note=note)
            if isinstance(entry, str)
            else partial(_from_table, entry, path, says, note),
        )
        for number, entry in enumerate(entries, start=1)
    ]


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The prompt lines of a text file, with their numbers; blank ones and `#` left out."""
    lines = enumerate(_text(Path(path)).splitlines(), start=1)
    return [(n, line) for n, line in lines if line.strip() and not line.lstrip().startswith("#")]


def _from_toml(content: Mapping[str, Any], path: Path) -> list[Any]:
    shared = content.get("prompt")
    if not isinstance(shared, Mapping):
        raise ConfigError(
            f"{path} has no table [prompt].", fix="Add [prompt] and [[prompt.subset]]."
        )
    subsets = shared.get("subset", [])
    general = {key: value for key, value in shared.items() if key != "subset"}
    if not isinstance(subsets, list):
        subsets = [subsets]
    wrong = next((one for one in subsets if not isinstance(one, Mapping)), None)
    if wrong is not None:
        raise ConfigError(
            f"{path}: subset of [prompt] is {wrong!r:.60}, and no table.",
            fix="Write [[prompt.subset]] and its keys below.",
        )
    return [{**general, **subset} for subset in subsets or [{}]]


def _from_json(text: str, path: Path) -> list[Any]:
    try:
        content = parse_json(text)
    except TextError as error:
        raise ConfigError(f"{path} is not JSON: {error}.", fix="Mend it at that place.") from error
    if not isinstance(content, list):
        raise ConfigError(f"{path} is not a list of prompts.", fix='Write ["a cat", …].')
    return content


def _from_table(table: Any, path: Path, says: Grammar, note: Note | None) -> dict[str, Any]:
    if not isinstance(table, Mapping) or not isinstance(table.get("prompt"), str):
        raise ConfigError(f"{path} has an entry without a prompt.", fix='Add prompt = "…" to it.')
    kinds = {letter.key: letter for letter in (*says.letters.values(), *says.more)}
    aliases = says.keys
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key == "prompt":
            found["prompt"] = value
            continue
        if key in says.unused:
            if note is not None:
                note(says.unused[key])
            continue
        letter = kinds.get(aliases.get(key, key))
        if letter is None:
            known = [*aliases, *kinds, "prompt"]
            raise ConfigError(
                f"{path} has the key {key!r}, which is no option of prompts.",
                fix=did_you_mean(key, known),
            )
        if letter.repeats:
            entries = value if isinstance(value, list) else [value]
            found[letter.key] = [_value(letter.kind, str(v), key) for v in entries]
        else:
            found[letter.key] = _value(letter.kind, str(value), key)
    return found


def _value(kind: type, word: str, name: str) -> Any:
    if kind is str:
        return word
    try:
        number = float(word)
        if kind is float:
            return number
        if not number.is_integer():
            raise ValueError
        return int(number) if "e" in word.lower() or "." in word else int(word)
    except ValueError as error:
        article = "a whole number" if kind is int else "a number"
        raise ConfigError(
            f"{name} of a prompt takes {article}, not {word!r:.60}.", fix=f"Write {name} 16, say."
        ) from error


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"The prompt file {path} does not exist.", fix="Check its path."
        ) from error
    except (OSError, TextError) as error:
        raise ConfigError(
            f"The prompt file {path} cannot be read: {reason(error)}.",
            fix="Give a file in UTF-8.",
        ) from error


def _toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(_text(path))
    except TextError as error:
        raise ConfigError(f"{path} is not TOML: {error}.", fix="Mend it at that place.") from error
