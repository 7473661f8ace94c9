"""Processes that share the caching of one dataset: each item is one's, and a killed one's is the others'."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from musubi.sharing import CLAIMS

SCRIPT = Path(__file__).parent / "toy_cache.py"


def start(world, command: str, rank: int, *, pause: float) -> subprocess.Popen:
    words = [sys.executable, str(SCRIPT), command, str(world.data), str(world.folder / "weights")]
    launcher = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    environment = {**os.environ, **launcher, "TOY_PAUSE": str(pause), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def files(world) -> dict[Path, bytes]:
    return {p: p.read_bytes() for c in world.caches for p in c.iterdir()}


@pytest.fixture
def many(world):
    """More images, one of which cannot be read."""
    folder = world.folder / "images"
    pictures = [p for p in sorted(folder.iterdir()) if p.suffix == ".png"]
    for number in range(8):
        copy = folder / f"more{number}.png"
        copy.write_bytes(pictures[number % 2].read_bytes())
        copy.with_suffix(".txt").write_text(f"number {number}", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("broken", encoding="utf-8")
    return world


@pytest.mark.parametrize("command", ["latents", "text"])
def test_each_item_is_encoded_once_and_all_end_as_one_would(many, command):
    getattr(many, command)()
    once, alone = many.encoded(), files(many)
    for path in alone:
        path.unlink()
    both = [start(many, command, rank, pause=0.15) for rank in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert files(many) == alone
    parts = [[line.partition(" ")[2] for line in out.splitlines()] for out, _ in said]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == once


@pytest.mark.parametrize("command", ["latents", "text"])
def test_what_a_killed_process_left_is_taken_over(many, command):
    getattr(many, command)()
    alone = files(many)
    for path in alone:
        path.unlink()
    killed = start(many, command, 1, pause=30)
    killed.stdout.readline()  # it holds what it encodes now, and more
    other = start(many, command, 0, pause=0)
    while len(files(many)) < 3 and other.poll() is None:
        time.sleep(0.02)
    assert other.poll() is None  # it waits for what the first one holds
    killed.kill()
    killed.communicate()
    assert other.communicate(timeout=120)[0] and other.returncode == 0
    assert {p: b for p, b in files(many).items() if p.name != CLAIMS} == alone
