"""The options of `musubi models fetch` and `musubi models find`, and where model files are looked for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from musubi.config.options import Options, Retired, option
from musubi.errors import ConfigError, system_reason
from musubi.untrusted import TextError, parse_toml, read_text

VARIABLE = "MUSUBI_MODELS"
_KEY = "models"


class FetchConfig(Options):
    """`musubi models fetch`."""

    name: list[str] = option(
        ..., "The architecture; `musubi models` lists them.", metavar="ARCHITECTURE"
    )
    task: str | None = option(
        None, "The task or published variant; the architecture's first variant when not given."
    )
    to: str | None = option(
        None,
        "Folder for the files. When not given: MUSUBI_MODELS, the folder in the settings file, "
        "or `models`.",
        metavar="DIR",
    )
    only: list[str] | None = option(
        None, "Components to fetch, such as `dit vae`; all that the task needs when not given."
    )
    file: list[str] | None = option(
        None, "Prefer files with these words in their names, such as `fp8_scaled`."
    )
    dry_run: bool = option(False, "Show what would be fetched, and fetch nothing.")
    revision: str | None = option(None, "Branch, tag or commit of the repositories.")


class FindConfig(Options):
    """`musubi models find`."""

    folders: list[str] = option(
        [],
        "Folders to search: ComfyUI's `models`, a hub cache, or any other. When not given, the "
        "folders where commands look for models.",
        metavar="FOLDER",
    )
    arch: str | None = option(
        None, "Show only files of this architecture.", metavar="NAME", aliases=("architecture",)
    )
    json_output: bool = option(
        False, "Print the result as one JSON list, for programs.", group="Output", aliases=("json",)
    )


def settings_file() -> Path:
    """The file of a user's own settings: `musubi/config.toml` where the system keeps such files."""
    if sys.platform == "win32":
        home = Path(os.environ.get("APPDATA") or Path.home() / "AppData/Roaming")
    else:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "musubi" / "config.toml"


def model_folders(given: str | None = None) -> list[Path]:
    """Where model files are looked for: `--models`, else MUSUBI_MODELS, else the settings file.

    Raises:
        ConfigError: One of them is no folder, or the settings file cannot be read.
    """
    if given is not None:
        return [_folder(given, "--models")]
    told = os.environ.get(VARIABLE)
    if told:
        return [_folder(part, VARIABLE) for part in told.split(os.pathsep) if part]
    path = settings_file()
    if not path.is_file():
        return []
    try:
        value = parse_toml(read_text(path)).get(_KEY)
    except (OSError, TextError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else error
        raise ConfigError(
            f"{path} cannot be read: {reason}.", fix=f"Correct or delete {path}."
        ) from error
    folders = [value] if isinstance(value, str) else value or []
    if not isinstance(folders, list) or not all(isinstance(one, str) for one in folders):
        raise ConfigError(
            f"{path}: {_KEY!r} is {value!r}.", fix='Write models = "DIR", or a list of such.'
        )
    return [_folder(one, f"{_KEY!r} in {path}") for one in folders]


def _folder(text: str, whose: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f"{whose} is {text!r}, which is no folder.", fix="Give a folder that exists."
        )
    return path


RETIRED: tuple[Retired, ...] = ()
