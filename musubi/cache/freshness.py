"""Whether a record may still be used: compare what it was made from with the current files and settings."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from musubi.cache.header import RecordHeader
from musubi.plugin.architecture import Architecture, Task
from musubi.plugin.option import Command
from musubi.plugin.record import Field, lacking

PREPROCESSING_VERSION = 1
"""Raise it when reading, resizing or cropping changes what a clip holds."""

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What records must have been made with. Unknown values are not compared.

    Args:
        task: The task; its schema names the fields.
        encoders: Component name to the identity of its weights file.
        dtypes: Component name to the dtype it computes in.
        options: The architecture's options that shape records.
    """

    task: Task
    encoders: Mapping[str, str] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def only(self, components: Iterable[str]) -> Wanted:
        """A copy for some of the components."""
        names = set(components)
        return replace(
            self,
            encoders={k: v for k, v in self.encoders.items() if k in names},
            dtypes={k: v for k, v in self.dtypes.items() if k in names},
        )


def cache_options(
    architecture: Architecture, options: Mapping[str, Any], *commands: Command
) -> dict[str, Any]:
    """The given options that affect records.

    Args:
        architecture: The architecture, which declares the options.
        options: Its own options and their values.
        commands: Only options that each of these commands takes.
    """
    return {
        o.name: options[o.name]
        for o in architecture.options
        if o.affects_cache and o.name in options and set(commands) <= set(o.commands)
    }


# digests


def text_digest(text: str) -> str:
    """Digest of a caption."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Digest of named values, independent of their order."""
    return text_digest(json.dumps(settings, sort_keys=True, default=str))


def files_of(path: Path) -> list[Path]:
    """The files of a source: the file itself, or the files in a directory of frames."""
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file())
    return [path]


def signature(paths: Iterable[Path]) -> str:
    """Names, sizes and modification times of files and of what directories hold, as text."""
    rows: list[str] = []
    for path in paths:
        status = os.stat(path)  # noqa: PTH116 - 10,000 of these are counted in tenths of a second
        if stat.S_ISDIR(status.st_mode):
            rows += [_row(p.name, p.stat()) for p in files_of(path)]
        else:
            rows.append(_row(path.name, status))
    return "; ".join(rows)


def stamp(paths: Iterable[Path]) -> tuple[tuple[str, int, int, int, int], ...]:
    """Facts that show whether files were changed while they were read; more than a record stores.

    Each file's path, size, modification time, change time and number.
    """
    return tuple(
        (str(file), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
        for path in paths
        for file in files_of(path)
        for s in (file.stat(),)
    )


def content_digest(paths: Iterable[Path]) -> str:
    """Digest of all bytes of files, and of the files in directories, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        for file in files_of(path):
            digest.update(str(file.stat().st_size).encode())
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
    return digest.hexdigest()


def _row(name: str, status: os.stat_result) -> str:
    return f"{name} {status.st_size} {status.st_mtime_ns}"


# comparisons: a phrase that says why not, or None


def made_otherwise(header: RecordHeader, wanted: Wanted, fields: Sequence[Field]) -> str | None:
    """Why a record was not made as wanted, whatever its source; None when it was."""
    if header.schema != wanted.task.schema.version:
        return "a record of an older layout"
    absent = lacking(fields, header.fields)
    if absent:
        return f"made for another task (no {absent[0]!r})"
    if header.adopted:
        return None
    for component, identity in wanted.encoders.items():
        if header.encoders.get(component) != identity:
            return f"made with another {component} file"
    for component, dtype in wanted.dtypes.items():
        if header.dtypes.get(component) != dtype:
            made = header.dtypes.get(component, "another dtype")
            return f"made with {component} in {made}, not {dtype}"
    for name, value in wanted.options.items():
        if name in header.options and header.options[name] != value:
            return f"made with {name} = {header.options[name]}, not {value}"
    return None


def odd_ones(headers: Sequence[RecordHeader]) -> dict[int, str]:
    """Records whose encoder or options differ from most others: index → reason.

    Used if no encoder file is given to compare with: all records should at least be made alike.
    """
    out: dict[int, str] = {}
    for attribute, what in (
        ("encoders", "made with another {} file than most"),
        ("dtypes", "made with {} in another dtype than most"),
        ("options", "made with another {} than most"),
    ):
        judged = [(i, getattr(h, attribute)) for i, h in enumerate(headers) if not h.adopted]
        for name in sorted({name for _, values in judged for name in values}):
            values = [(i, str(given[name])) for i, given in judged if name in given]
            counts = Counter(value for _, value in values)
            if len(counts) < 2:
                continue
            usual, _ = counts.most_common(1)[0]
            for i, value in values:
                if value != usual:
                    out.setdefault(i, what.format(name))
    return out
