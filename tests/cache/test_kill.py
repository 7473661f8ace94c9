"""Caching that is killed and started again ends with the files of a run that was not."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "toy_cache.py"


def start(world, command: str, pause: float) -> subprocess.Popen:
    words = [sys.executable, str(SCRIPT), command, str(world.data), str(world.folder / "weights")]
    environment = {**os.environ, "TOY_PAUSE": str(pause), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment)


@pytest.mark.parametrize("command", ["latents", "text"])
def test_killed_at_any_moment_it_continues(world, command):
    getattr(world, command)()
    undisturbed = {p: p.read_bytes() for c in world.caches for p in c.iterdir()}
    for path in undisturbed:
        path.unlink()

    process = start(world, command, pause=0.2)
    while not any(world.records()) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.random() * 0.5)
    process.kill()
    process.wait()
    left = world.records()
    assert 0 < len(left) <= len(undisturbed)

    getattr(world, command)()
    assert {p: p.read_bytes() for c in world.caches for p in c.iterdir()} == undisturbed
