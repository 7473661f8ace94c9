"""The real CLI in a subprocess, on tiny checkpoints in the released layout and real media files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from musubi import registry
from musubi.testing import media, twins


def musubi(
    *words: object, ok: bool = True, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `musubi WORDS…` as a user does."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        [sys.executable, "-m", "musubi", *map(str, words)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=env,
        cwd=cwd,
        timeout=600,
    )
    if ok:
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def run():
    return musubi


class World:
    """A folder with a toy Wan and a small dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = twins.write_twins(
            registry.find("wan"), folder / "models", task=registry.find("wan").task("t2v")
        )
        self.data = media.write_dataset(folder / "data")
        self.out = folder / "out"

    def files(self, *names: str) -> list[str]:
        """`--name path` for each."""
        return [word for name in names for word in (f"--{name}", str(self.models[name]))]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    # a space, brackets and Japanese in the path: users have them
    return World(tmp_path_factory.mktemp("wan") / "my [cat] 猫")
