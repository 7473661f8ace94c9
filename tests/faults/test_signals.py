"""Signals end every command in its own time, with one line that goes on, and leave nothing behind."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import ALL

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="signals are sent another way there"
)
ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143} if os.name == "posix" else {}


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Without `nohup`, whose children take no notice of a lost connection, and rightly so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def start(words: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "musubi", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
    )


def stopped(process: subprocess.Popen, beginning: str, how: signal.Signals) -> tuple[str, float]:
    """Wait for a line, send a signal; all that was said, and the seconds until the end."""
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(beginning):
            break
    process.send_signal(how)
    sent = time.monotonic()
    rest, _ = process.communicate(timeout=120)
    return said + rest, time.monotonic() - sent


def way_on(said: str) -> list[str]:
    lines = [line for line in said.splitlines() if line.startswith("Go on with: musubi ")]
    assert len(lines) == 1 and "error" not in said, said
    return shlex.split(lines[0].removeprefix("Go on with: musubi "))


@pytest.mark.parametrize("how", list(ENDS) if ALL else list(ENDS)[1:2], ids=lambda s: s.name)
def test_training_saves_its_state_and_says_how_to_go_on(ask, finished, tmp_path, how):
    world = finished.copy(tmp_path / "world")
    words = world.words("train", "--output_name", "x", "--max_train_steps", "100000")
    words[words.index("--save_every_n_steps") + 1] = "1000000"
    process = start(words)
    said, _ = stopped(process, "steps: ", how)
    assert process.returncode == ENDS[how], said
    assert "the state is" in said
    assert (
        not list(world.folder.rglob(".musubi-*.tmp")) and not (world.out / "x" / ".lock").exists()
    )
    line = way_on(said)
    assert line[0] == "train" and line[-2:] == ["--resume", "auto"]
    (state,) = world.out.glob("x-step*-state")
    step = int(state.name.split("step")[1].split("-")[0])
    found = ask([*line, "--max_train_steps", str(step + 1)])
    assert found["code"] == 0 and f"after step {step}" in found["said"], found["said"]


@pytest.mark.parametrize(
    ("command", "beginning", "how"),
    [
        ("cache latents", "Encoding clips", signal.SIGTERM),
        ("cache text", "Loading", signal.SIGINT),
        ("train", "Loading", signal.SIGTERM),
        ("lora merge", "Merging", signal.SIGINT),
        ("generate", "Denoising", signal.SIGTERM),
    ],
)
def test_other_phases_end_at_once(finished, tmp_path, command, beginning, how):
    if not ALL and command != "cache text":
        pytest.skip("part of the whole run")
    world = finished.copy(tmp_path / "world")
    more = ("--infer_steps", "5000") if command == "generate" else ()
    words = world.words(command, *more)
    for path in [*world.folder.glob("c*/*.safetensors"), world.folder / "merged.safetensors"]:
        if command.startswith("cache") or path.name == "merged.safetensors":
            path.unlink()
    process = start(words)
    said, seconds = stopped(process, beginning, how)
    if process.returncode == 0:
        return  # it was done before the signal came
    assert process.returncode == ENDS[how], said
    assert way_on(said) == words
    assert seconds < 15  # two, but for a computer that is busy
    assert not list(world.folder.rglob(".musubi-*.tmp"))
