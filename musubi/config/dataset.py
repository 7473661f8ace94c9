"""Read the dataset file: `[general]` and `[[datasets]]`, with every value filled in.

A value is looked up in the dataset, then in `[general]`, then on the command line, then here.
A relative path is meant from the working directory; when there is nothing, from the dataset file's
own directory. A cache directory that does not exist yet is made where the data was found.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model

from musubi import registry
from musubi.config.dataset_captions import rules_of
from musubi.config.dataset_entry import (
    MAX_FRAMES,
    PLACES,
    DatasetEntry,
    DatasetFile,
    DatasetKeys,
    Extraction,
    SharedKeys,
)
from musubi.config.dataset_inputs import inputs_of
from musubi.config.dataset_shares import check_shares
from musubi.config.dataset_values import (
    Kind,
    extension_of,
    found,
    is_archive,
    lengths_of,
    near,
    resolution_of,
)
from musubi.errors import ConfigError, MusubiError, did_you_mean
from musubi.plugin.architecture import Architecture, Task
from musubi.untrusted import TextError, parse_json, parse_toml, read_text, reason, value_fault

__all__ = [
    "MAX_FRAMES",
    "DatasetEntry",
    "DatasetFile",
    "Extraction",
    "named_keys",
    "read_dataset_config",
]

_VIDEO_KEYS = (
    "target_frames",
    "frame_extraction",
    "frame_stride",
    "frame_sample",
    "max_frames",
    "source_fps",
)


def read_dataset_config(
    path: str | Path,
    architecture: Architecture,
    task: Task,
    *,
    command_line: Mapping[str, Any] | None = None,
) -> DatasetFile:
    """Read a dataset file, TOML or JSON.

    Args:
        path: The file.
        architecture: Its own keys are allowed, and those of other installed ones are passed over.
        task: Says which sizes and lengths are possible, and what belongs beside the clips.
        command_line: Options that stand in where the file says nothing; None is "not given".

    Raises:
        ConfigError: The file cannot be read, or a key or a value in it cannot be used.
    """
    path = Path(path)
    content = _content(path)
    own: dict[str, Any] = {o.name: (o.type | None, None) for o in architecture.dataset_options}
    others, directories = _of_all(architecture)
    for option in others:
        own.setdefault(option, (Any, None))
    general_model: type[SharedKeys] = create_model("General", __base__=SharedKeys, **own)  # type: ignore[call-overload]
    own |= dict.fromkeys(directories, (str | None, None))
    dataset_model: type[DatasetKeys] = create_model("Dataset", __base__=DatasetKeys, **own)  # type: ignore[call-overload]
    if unknown := [key for key in content if key not in ("general", "datasets")]:
        known = [*dataset_model.model_fields, "general", "datasets"]
        raise ConfigError(
            f"{path}: {unknown[0]!r} stands outside of [general] and [[datasets]].",
            fix="Put it under one of them."
            if unknown[0] in dataset_model.model_fields
            else did_you_mean(unknown[0], known),
        )
    paths = {*DatasetKeys.model_fields, *directories} - {*SharedKeys.model_fields}
    general = _checked(general_model, content.get("general", {}), f"{path}, [general]", paths)
    tables = content.get("datasets", [])
    if not isinstance(tables, list) or not tables:
        raise ConfigError(
            f"{path} names no dataset.",
            fix="Add a [[datasets]] table with image_directory, video_directory, image_jsonl_file "
            "or video_jsonl_file.",
        )
    notes: list[str] = []
    entries: list[DatasetEntry] = []
    fallback = {k: v for k, v in (command_line or {}).items() if v is not None}
    for index, table in enumerate(tables):
        where = f"{path}, [[datasets]] number {index + 1}"
        given = {
            **fallback,
            **_given(general),
            **_given(_checked(dataset_model, table, where, paths)),
        }
        own_table = table if isinstance(table, dict) else {}
        target = (architecture, task)
        entries.append(_entry(index, given, own_table, where, path, target, notes))
    _refuse_shared_caches(path, entries)
    check_shares(path, entries)
    return DatasetFile(path=path, datasets=tuple(entries), notes=tuple(dict.fromkeys(notes)))


def named_keys(path: str | Path) -> set[str]:
    """The keys that a dataset file uses, and those of the first lines of its lists of files.

    Raises:
        ConfigError: The file cannot be read.
    """
    path = Path(path)
    tables = _content(path).get("datasets", [])
    keys: set[str] = set()
    for table in tables if isinstance(tables, list) else ():
        if not isinstance(table, dict):
            continue
        keys |= set(table)
        for key in ("image_jsonl_file", "video_jsonl_file"):
            if isinstance(table.get(key), str):
                keys |= _columns(found(table[key], path.parent)[0])
    return keys


def _columns(path: Path) -> set[str]:
    """The keys of the first line of a list of files; numbers behind them are left out."""
    try:
        if path.suffix.lower() == ".json":
            rows = parse_json(read_text(path))
            first = next(iter(rows.values() if isinstance(rows, dict) else rows), {})
            return (
                {re.sub(r"_\d+$", "", key) for key in first} if isinstance(first, dict) else set()
            )
        with path.open(encoding="utf-8-sig") as lines:
            first = json.loads(next((line for line in lines if line.strip()), "{}"))
    except (OSError, ValueError, TypeError):
        return set()  # the code that reads the list reports what is wrong with it
    return {re.sub(r"_\d+$", "", key) for key in first} if isinstance(first, dict) else set()


def _content(path: Path) -> dict[str, Any]:
    kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"The dataset file {path} does not exist.", fix=near(path, "Check --dataset_config.")
        ) from error
    except (OSError, TextError) as error:
        raise ConfigError(
            f"{path} cannot be read: {reason(error)}.", fix="Give a file in UTF-8."
        ) from error
    try:
        content = parse_json(text) if kind == "JSON" else parse_toml(text)
    except TextError as error:
        raise ConfigError(
            f"{path} is not {kind}: {error}.",
            fix="Texts stand in quotes, lists in brackets; a Windows path stands in 'single' quotes."
            if kind == "TOML"
            else "Texts and keys stand in double quotes.",
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a table.", fix='Write {"datasets": [...]}.')
    return content


def _of_all(architecture: Architecture) -> tuple[set[str], set[str]]:
    """Keys of other installed architectures, and every architecture's keys that name a directory:
    one file may serve several.
    """
    options: set[str] = set()
    directories = {i.directory for i in architecture.inputs if i.directory}
    for name in registry.names():
        if name != architecture.name:
            try:
                other = registry.find(name)
            except MusubiError:  # a broken plugin is not this dataset's concern
                continue
            options |= {o.name for o in other.dataset_options}
            directories |= {i.directory for i in other.inputs if i.directory}
    return options, directories


def _checked(model: type[SharedKeys], table: Any, where: str, paths: set[str]) -> SharedKeys:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is not a table.", fix="Write keys and values under it.")
    for key in table:
        if key not in model.model_fields:
            if key in paths:
                raise ConfigError(
                    f"{where}: {key!r} belongs to one dataset.", fix="Move it into [[datasets]]."
                )
            raise ConfigError(
                f"{where}: {key!r} is not a known key.", fix=did_you_mean(key, model.model_fields)
            )
    for key, value in table.items():
        faults = map(value_fault, value if isinstance(value, list) else [value])
        if fault := next(filter(None, faults), None):
            raise ConfigError(f"{where}: {key} = {value!r:.100} cannot be used: {fault}.")
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise ConfigError(
            f"{where}: {key} = {table[key]!r:.100} cannot be used.", fix=_advice(key, first["msg"])
        ) from error


def _advice(key: str, message: str) -> str:
    if key == "resolution":
        return "Write a number or [width, height], in whole pixels."
    if key == "target_frames":
        return "Write a list of whole numbers, such as [1, 25, 49]."
    return message.replace("Input should be", "It should be").rstrip(".") + "."


def _given(table: SharedKeys) -> dict[str, Any]:
    return {k: v for k, v in table.model_dump(exclude_unset=True).items() if v is not None}


def _entry(
    index: int,
    given: dict[str, Any],
    table: Mapping[str, Any],
    where: str,
    path: Path,
    target: tuple[Architecture, Task],
    notes: list[str],
) -> DatasetEntry:
    architecture, task = target
    places = [key for key in PLACES if key in given]
    if len(places) != 1:
        raise ConfigError(
            f"{where} names {' and '.join(places)}."
            if places
            else f"{where} names no directory and no list of files.",
            fix=f"Give one of {', '.join(PLACES)}.",
        )
    key = places[0]
    kind: Kind = "image" if key.startswith("image") else "video"
    listed = key.endswith("jsonl_file")
    if kind == "image" and (wrong := [k for k in _VIDEO_KEYS if k in table]):
        raise ConfigError(
            f"{where}: {wrong[0]!r} means nothing for images.",
            fix="Remove it, or give video_directory or video_jsonl_file.",
        )
    place, base = found(given[key], path.parent)
    exists = place.is_file() if listed else place.is_dir() or is_archive(place)
    if not exists and not _is_cached(given, path.parent, architecture):
        what = "file" if listed else "directory"
        raise ConfigError(
            f"{where}: the {what} {given[key]!r} of {key} does not exist.",
            fix=near(
                place,
                "Check the path; a Windows path stands in 'single' quotes.",
                path.parent / given[key],
            ),
        )
    if (listed or not place.is_dir()) and "cache_directory" not in given:
        raise ConfigError(
            f"{where} has {key} and no cache_directory.",
            fix=f"Give a cache_directory: {'a list of files' if listed else 'an archive'} has no "
            "directory to keep records in.",
        )
    inputs, directories = inputs_of(
        given, target, (where, key), home=path.parent, exists=exists, notes=notes
    )
    cache = place
    if "cache_directory" in given:
        cache, _ = found(given["cache_directory"], path.parent, base)
        if cache.exists() and not cache.is_dir():
            raise ConfigError(
                f"{where}: {given['cache_directory']!r} of cache_directory is a file.",
                fix="Give a directory; it is made when it does not exist.",
            )
    if given.get("frame_extraction") == "longest" and "target_frames" not in given:
        raise ConfigError(
            f'{where}: frame_extraction = "longest" chooses among target_frames, which are not given.',
            fix='Give target_frames = [17, 33, 49], say, or frame_extraction = "full".',
        )
    extension = extension_of(given.get("caption_extension"), listed, where, notes)
    plain = ("batch_size", "num_repeats", "enable_bucket", "bucket_no_upscale", "alpha_mask")
    plain += ("weight", "is_reg", "reg_ratio")
    return DatasetEntry(
        index=index,
        kind=kind,
        directory=None if listed else place,
        jsonl_file=place if listed else None,
        inputs=inputs,
        directories=directories,
        cache_directory=cache,
        resolution=resolution_of(given, where, architecture, task),
        caption_extension=extension,
        rules=rules_of(given, where, listed=listed),
        target_frames=lengths_of(given, kind, where, task, notes),
        period=task.shape.period,
        options={o.name: given.get(o.name, o.default) for o in architecture.dataset_options},
        **{name: given[name] for name in (*plain, *_VIDEO_KEYS[1:]) if name in given},
    )


def _is_cached(given: Mapping[str, Any], home: Path, architecture: Architecture) -> bool:
    """Whether there is a cache directory with records, which do without the files they are made of."""
    if "cache_directory" not in given:
        return False
    cache, _ = found(given["cache_directory"], home)
    return any(cache.glob(f"*_{architecture.suffix}.safetensors"))


def _refuse_shared_caches(path: Path, entries: Iterable[DatasetEntry]) -> None:
    seen: dict[str, int] = {}
    for entry in entries:
        key = os.path.normcase(entry.cache_directory.resolve())
        if key in seen:
            raise ConfigError(
                f"{path}: datasets number {seen[key] + 1} and {entry.index + 1} have one "
                f"cache_directory, {entry.cache_directory}.",
                fix="Give each dataset a cache_directory of its own.",
            )
        seen[key] = entry.index
