"""Lists of files: a line of JSON for each image or video, or one JSON array or object of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from musubi.config.dataset import DatasetEntry
from musubi.data.media import VIDEO_EXTENSIONS, image_extensions
from musubi.data.source import Scan, Skipped, Source, captions_of, ending, of_kind, stem_of
from musubi.errors import DataError, nearest
from musubi.untrusted import TextError, check_path, parse_json, read_text, reason, text_fault

LIST_LIMIT = 1 << 30
"""Bytes of the longest list of a dataset."""


def from_list(entry: DatasetEntry) -> Scan:
    """The files that a list names."""
    assert entry.jsonl_file is not None
    found = Scan(sources=[])
    key = f"{entry.kind}_path"
    for place, row in _rows(entry.jsonl_file, key):
        where = f"{entry.jsonl_file}, {place}"
        if not isinstance(row.get(key), str):
            close = nearest(key, [k for k in row if k != "caption"])
            raise DataError(
                f"{where} has no {key!r}.",
                fix=f"It has {close!r}." if close else f'Write {{"{key}": "…", "caption": "…"}}.',
            )
        try:
            path = _located(row[key], entry.jsonl_file)
            inputs = _inputs_of(row, entry)
        except (OSError, RuntimeError) as error:  # the latter for "~nobody"
            what = f"The path {row[key]!r:.200} of {where} cannot be used: {reason(error)}."
            found.skipped.append(Skipped(path=Path(entry.jsonl_file), reason=what))
            continue
        texts = _texts(row.get("caption", ""))
        found_captions = captions_of([text.strip() for text in texts or ()], entry.rules)
        source = Source(
            kind=entry.kind,
            path=path,
            stem=stem_of(path.name),
            **(found_captions if texts and any(map(str.strip, texts)) else {"captions": ("",)}),
            inputs=inputs,
            dataset=entry.index,
        )
        why = None
        if absent := next((p for p in source.paths if not p.exists()), None):
            why = f"{absent} of {where} does not exist."
        elif texts is None:
            why = f"The caption of {path.name} ({where}) is not a text."
        elif not source.caption:
            why = f"{path.name} has no caption, or an empty one ({where})."
        elif fault := text_fault("".join(source.captions)) or text_fault(path.name):
            why = f"{path.name} or its caption cannot be used ({where}): {fault}."
        elif other := _of_another_kind(path, entry):
            why = f"{other} ({where})."
        if why:
            found.skipped.append(Skipped(path=path, reason=why))
        else:
            found.sources.append(source)
    found.sources.sort(key=lambda s: (s.path.name, str(s.path)))
    return found


def _texts(said: Any) -> list[str] | None:
    """One caption or several; None when they are no texts."""
    texts = said if isinstance(said, list) else [said]
    return texts if all(isinstance(text, str) for text in texts) else None


def _rows(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, and the row."""
    try:
        text = read_text(path, limit=LIST_LIMIT)
    except (OSError, TextError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
    yield from (
        _of_json(path, text, key) if path.suffix.lower() == ".json" else _of_lines(path, text)
    )


def _of_json(path: Path, text: str, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """An array of rows, or an object of captions or rows by path."""
    try:
        whole = parse_json(text, unique=True)
    except TextError as error:
        raise DataError(
            f"{path} is not JSON: {error}.",
            fix="Write an array of objects; a list with an object in each line ends in .jsonl.",
        ) from error
    rows = whole
    if isinstance(whole, dict):
        rows = [
            {key: name, **said} if isinstance(said, dict) else {key: name, "caption": said}
            for name, said in whole.items()
        ]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f"{path} is no list of objects.", fix=f'Write [{{"{key}": "…", "caption": "…"}}].'
        )
    for number, row in enumerate(rows, 1):
        yield f"entry {number}", row


def _of_lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except TextError as error:
            raise DataError(
                f"{path}, line {number} is not JSON: {error}.",
                fix="Each line is one object in braces; a Windows path needs double backslashes.",
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number} is not an object.", fix='Write {"caption": "…", …}.'
            )
        yield f"line {number}", row


def _located(text: str, listing: Path) -> Path:
    """From the working directory, or, when there is nothing, from the directory of the list."""
    check_path(text)
    path = Path(text).expanduser()
    if path.is_absolute() or path.exists() or not (listing.parent / path).exists():
        return path
    return listing.parent / path


def _inputs_of(row: Mapping[str, Any], entry: DatasetEntry) -> dict[str, tuple[Path, ...]]:
    """For each input what the line names: its key, then the key with a number, by number."""
    assert entry.jsonl_file is not None
    found: dict[str, tuple[Path, ...]] = {}
    for one in entry.inputs:
        if one.column is None:
            continue
        ranked: dict[int, str] = {}
        for key, value in row.items():
            match = re.fullmatch(rf"{re.escape(one.column)}(?:_(\d{{1,9}}))?", key)
            if match is not None and isinstance(value, str) and value:
                ranked[int(match.group(1)) if match.group(1) else -1] = value
        files = [_located(ranked[rank], entry.jsonl_file) for rank in sorted(ranked)]
        if files:
            found[one.name] = tuple(files if one.many else files[:1])
    return found


def _of_another_kind(path: Path, entry: DatasetEntry) -> str | None:
    if path.is_dir():
        return f"{path.name} is a directory" if entry.kind == "image" else None
    if not path.is_file():
        return f"{path.name} is a pipe or a device and no file"
    known = VIDEO_EXTENSIONS if entry.kind == "video" else image_extensions()
    if ending(path.name) in known and of_kind(path, entry.kind):
        return None
    return f"{path.name} is not one of the {entry.kind}s that can be read"
