"""The world and the process that runs commands in it. `MUSUBI_FAULTS=all` runs every case (`nox -s faults`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import World

ALL = os.environ.get("MUSUBI_FAULTS") == "all"
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def ask() -> Iterator[Callable[..., dict]]:
    """Run a command in a process of its own; its exit status and what it said."""
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    process = subprocess.Popen(
        [sys.executable, str(HERE / "worker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def call(words: list[str], **more: object) -> dict:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"words": words, **more}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    with process:  # which closes its ends
        yield call


@pytest.fixture(scope="session")
def finished(ask, tmp_path_factory) -> World:
    """A world in which every command has run."""
    world = World.build(tmp_path_factory.mktemp("faults") / "world")
    for command in (
        "cache latents",
        "cache text",
        "train",
        "generate",
        "lora merge",
        "lora convert",
    ):
        found = ask(world.words(command))
        assert found["code"] == 0, found["said"]
    found = ask(world.words("generate", "--output_type", "latent"))
    assert found["code"] == 0, found["said"]
    return world


def honest(found: dict) -> None:
    """What holds for every failure: words, no traceback, within bounds. (One that hangs has no code.)"""
    assert found["code"] in (0, 1, 2), found
    assert "Traceback" not in found["said"] and "unexpected" not in found["said"], found["said"]
    assert found["memory"] < 1024, found
