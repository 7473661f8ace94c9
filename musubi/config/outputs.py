"""Places that a command will write to: looked at before it works for hours."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from musubi.config.options import Options
from musubi.errors import ConfigError, system_reason

Kind = Literal["file", "folder", "either"]

OUTPUTS: Mapping[str, Kind] = {
    "save_path": "folder",
    "save_merged_model": "file",
    "output_dir": "folder",
    "logging_dir": "folder",
    "output_file": "file",
    "picture": "file",
    "json_file": "file",
    "to": "folder",
    "out": "folder",
}
"""Option → what is written there; `output` and `report` are a file or a folder by their command."""

_BY_MODEL: Mapping[str, Mapping[str, Kind]] = {
    "LoraConvertConfig": {"output": "either"},
    "LoraExtractConfig": {"output": "file"},
    "LoraResizeConfig": {"output": "file"},
    "CachePreviewConfig": {"output": "folder"},
    "GalleryConfig": {"output": "file"},
    "DoctorConfig": {"report": "file"},
}


def check_outputs(config: Options) -> None:
    """Refuse a file where a folder is written, a folder where a file is, and what cannot be written.

    Raises:
        ConfigError: Naming the option and the path.
    """
    for name, kind in outputs_of(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, str) and value and not _idle(config, name, value):
            check_writable(Path(value).expanduser(), f"--{name}", _kind(config, name, kind))


def outputs_of(model: type[Options]) -> dict[str, Kind]:
    """The options of a command that name what it writes."""
    found: dict[str, Kind] = {
        name: kind for name, kind in OUTPUTS.items() if name in model.model_fields
    }
    for one in model.__mro__:
        found |= _BY_MODEL.get(one.__name__, {})
    return found


def check_writable(path: Path, flag: str, kind: Kind) -> None:
    """Refuse a path that cannot become a file or a folder; nothing is made.

    Raises:
        ConfigError: Naming the option.
    """
    try:
        if kind == "file" and path.is_dir():
            raise ConfigError(f"{path} of {flag} is a folder.", fix="Give the path of a file.")
        if kind == "folder" and path.exists() and not path.is_dir():
            raise ConfigError(
                f"The folder {path} of {flag} cannot be written: it is a file.",
                fix="Give another folder.",
            )
        place = path if path.is_dir() else path.parent
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise ConfigError(
                f"{path} of {flag} cannot be written: {place} is a file, and no folder.",
                fix="Give another path.",
            )
        if not os.access(place, os.W_OK):
            raise PermissionError(13, "Permission denied", str(place))
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(
            f"{path} of {flag} cannot be written: {system_reason(error)}.", fix="Give another path."
        ) from error


def _kind(config: Any, name: str, kind: Kind) -> Kind:
    if kind != "either":
        return kind
    return "folder" if getattr(config, "target", None) == "peft" else "file"


def _idle(config: Any, name: str, value: str) -> bool:
    """Whether nothing is written there: figures to the terminal, or a preview in it."""
    return value == "-" or (name == "output" and getattr(config, "mode", "") == "console")
