"""Prompt lines and prompt files: `a cat --w 832 --h 480 --f 81 --d 7 --n blurry`.

A line is split at " --"; its first part is the prompt and nothing is searched in it. Two grammars
share their letters but one: `--g` is classifier-free guidance in a batch file and in interactive
use, and embedded guidance in the prompts of training previews.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from musubi.errors import ConfigError, did_you_mean
from musubi.untrusted import TextError, parse_json, parse_toml, read_text, reason

Grammar = Literal["batch", "preview"]
# What a preview is when its prompt does not say; the rest are the task's own defaults.
PREVIEW: Mapping[str, int] = {"width": 256, "height": 256, "frames": 1, "steps": 20}


@dataclass(frozen=True)
class _Letter:
    key: str
    kind: type = str
    repeats: bool = False


_SHARED = {
    "w": _Letter("width", int),
    "h": _Letter("height", int),
    "f": _Letter("frames", int),
    "d": _Letter("seed", int),
    "s": _Letter("steps", int),
    "fs": _Letter("flow_shift", float),
    "l": _Letter("guidance_scale", float),
    "n": _Letter("negative_prompt"),
    "i": _Letter("image_path"),
    "ei": _Letter("end_image_path"),
    "ci": _Letter("control_image_path", repeats=True),
}
LETTERS: Mapping[Grammar, Mapping[str, _Letter]] = {
    "batch": {
        **_SHARED,
        "g": _Letter("guidance_scale", float),
        "cn": _Letter("control_path"),
        "cim": _Letter("control_image_mask_path", repeats=True),
        "of": _Letter("one_frame_inference"),
        "vs": _Letter("video_sections", int),
        "mcrr": _Letter("magcache_retention_ratio", float),
        "mct": _Letter("magcache_threshold", float),
        "mck": _Letter("magcache_k", int),
    },
    "preview": {
        **_SHARED,
        "g": _Letter("embedded_cfg_scale", float),
        "cn": _Letter("control_path"),
        "of": _Letter("one_frame_inference"),
    },
}

# What prompt files in TOML and JSON may set and a line has no letter for.
_UNLETTERED: Mapping[Grammar, tuple[_Letter, ...]] = {
    "batch": (_Letter("video_path"), _Letter("strength", float)),
    "preview": (),
}

# Keys of prompt files in TOML and JSON → what a line's letters set.
_FILE_KEYS: Mapping[Grammar, Mapping[str, str]] = {
    "preview": {
        "frame_count": "frames",
        "sample_steps": "steps",
        "guidance_scale": "embedded_cfg_scale",
        "discrete_flow_shift": "flow_shift",
        "cfg_scale": "guidance_scale",
        "control_video_path": "control_path",
        "one_frame": "one_frame_inference",
    },
    "batch": {
        "frame_count": "frames",
        "video_length": "frames",
        "sample_steps": "steps",
        "infer_steps": "steps",
        "discrete_flow_shift": "flow_shift",
        "cfg_scale": "guidance_scale",
        "control_video_path": "control_path",
    },
}


def parse_line(
    text: str, defaults: Mapping[str, Any] | None = None, *, grammar: Grammar = "batch"
) -> dict[str, Any]:
    """One prompt line → what it sets, laid over `defaults`.

    Keys: prompt, width, height, frames, seed, steps, flow_shift, guidance_scale, negative_prompt,
    and options that only some architectures have, such as image_path.

    >>> parse_line("a cat --w 64 --d 7")
    {'prompt': 'a cat', 'width': 64, 'seed': 7}

    Raises:
        ConfigError: An unknown letter, or a value that is not what the letter takes.
    """
    prompt, *parts = text.strip().split(" --")
    found: dict[str, Any] = {**(defaults or {}), "prompt": prompt.strip()}
    letters = LETTERS[grammar]
    repeated: dict[str, list[Any]] = {}
    for part in parts:
        name, _, word = part.strip().partition(" ")
        letter = letters.get(name.lower())
        if letter is None:
            raise ConfigError(
                f"The prompt line has --{name}, which is no option of prompts.",
                fix=f"Known: {', '.join('--' + n for n in letters)}.",
            )
        value = _value(letter.kind, word.strip(), f"--{name}")
        if letter.repeats:
            repeated.setdefault(letter.key, []).append(value)
        else:
            found[letter.key] = value
    return {**found, **repeated}


def read_prompt_file(path: str | Path, *, grammar: Grammar = "batch") -> list[dict[str, Any]]:
    """The prompts of a `.txt`, `.toml` or `.json` file, in order; see `parse_line` for the keys.

    Lines that are blank or begin with `#` are left out. TOML has `[prompt]` with defaults and
    `[[prompt.subset]]`; JSON is a list of lines or of objects.

    Raises:
        ConfigError: The file cannot be read, or holds no prompt, or one of them is wrong.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        prompts = [parse_line(line, grammar=grammar) for _, line in read_lines(path)]
    elif suffix == ".toml":
        prompts = _from_toml(_toml(path), path, grammar)
    else:
        prompts = _from_json(_text(path), path, grammar)
    if not prompts:
        raise ConfigError(f"{path} holds no prompt.", fix="Write one prompt a line.")
    return prompts


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The prompt lines of a text file, with their numbers; blank ones and `#` left out."""
    lines = enumerate(_text(Path(path)).splitlines(), start=1)
    return [(n, line) for n, line in lines if line.strip() and not line.lstrip().startswith("#")]


def _from_toml(content: Mapping[str, Any], path: Path, grammar: Grammar) -> list[dict[str, Any]]:
    shared = content.get("prompt")
    if not isinstance(shared, Mapping):
        raise ConfigError(
            f"{path} has no table [prompt].", fix="Add [prompt] and [[prompt.subset]]."
        )
    subsets = shared.get("subset", [])
    general = {key: value for key, value in shared.items() if key != "subset"}
    if isinstance(subsets, Mapping):
        subsets = [subsets]
    return [_from_table({**general, **subset}, path, grammar) for subset in subsets or [{}]]


def _from_json(text: str, path: Path, grammar: Grammar) -> list[dict[str, Any]]:
    try:
        content = parse_json(text)
    except TextError as error:
        raise ConfigError(f"{path} is not JSON: {error}.", fix="Mend it at that place.") from error
    if not isinstance(content, list):
        raise ConfigError(f"{path} is not a list of prompts.", fix='Write ["a cat", …].')
    return [
        parse_line(entry, grammar=grammar)
        if isinstance(entry, str)
        else _from_table(entry, path, grammar)
        for entry in content
    ]


def _from_table(table: Any, path: Path, grammar: Grammar) -> dict[str, Any]:
    if not isinstance(table, Mapping) or not isinstance(table.get("prompt"), str):
        raise ConfigError(f"{path} has an entry without a prompt.", fix='Add prompt = "…" to it.')
    letters = (*LETTERS[grammar].values(), *_UNLETTERED[grammar])
    kinds = {letter.key: letter for letter in letters}
    aliases = _FILE_KEYS[grammar]
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key == "prompt":
            found["prompt"] = value
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
