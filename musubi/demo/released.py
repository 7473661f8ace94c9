"""The checkpoint in `world/`, as its `world.toml` describes it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi.config.options import ROLES
from musubi.errors import CheckpointError
from musubi.plugin import Architecture
from musubi.registry import find

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HOME = Path(__file__).with_name("world")


@dataclass(frozen=True)
class World:
    """A checkpoint in a folder.

    Args:
        folder: Where it is.
        arch: Name of its architecture.
        task: What it does.
        files: Component → name of its file.
        dtypes: Options of dtypes that suit a processor.
        sampling: Options of generation that suit the checkpoint.
    """

    folder: Path
    arch: str
    task: str
    files: Mapping[str, str]
    dtypes: Mapping[str, str]
    sampling: Mapping[str, Any]

    @property
    def architecture(self) -> Architecture:
        """The registration."""
        return find(self.arch)

    def path(self, component: str) -> Path:
        """The file of a component."""
        return self.folder / self.files[component]

    def flags(self, command: str) -> list[str]:
        """The options at the end of a command: the architecture, its files and dtypes."""
        words = ["--arch", self.arch]
        if command in ("train", "generate"):
            words += ["--task", self.task]
        roles = ROLES[command]
        for component in self.architecture.components:
            if component.role in roles and component.name in self.files:
                words += [f"--{component.option}", self.path(component.name).as_posix()]
                dtype = f"{component.name}_dtype"
                if dtype in self.dtypes and command != "lora merge":
                    words += [f"--{dtype}", self.dtypes[dtype]]
        return words

    def copy(self, folder: Path) -> World:
        """The same in another folder."""
        shutil.copytree(
            self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
        return read(folder)


def read(folder: Path = HOME) -> World:
    """The checkpoint in the folder.

    Raises:
        CheckpointError: A file is missing.
    """
    try:
        content = tomllib.loads((folder / "world.toml").read_text(encoding="utf-8"))
        world = World(folder=folder, **content)
    except FileNotFoundError:
        raise _absent(folder / "world.toml") from None
    for name in world.files:
        if not world.path(name).is_file():
            raise _absent(world.path(name))
    return world


def _absent(path: Path) -> CheckpointError:
    return CheckpointError(
        f"The demo's checkpoint lacks {path}.", fix="Install musubi again: pip install ."
    )
