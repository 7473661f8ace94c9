"""Every command killed, or refused by the disk, at a call that changes the disk, and then run again.

The end must be that of the undisturbed run, bit for bit, and nothing half-written may be taken for whole.
"""

from __future__ import annotations

import errno
import json
import random
import re
import shutil
import struct
from pathlib import Path

import pytest
from conftest import ALL, honest
from safetensors import safe_open
from world import World

from musubi.errors import system_reason

COMMANDS = ("cache latents", "cache text", "train", "generate", "lora merge", "lora convert")
MOST = {"cache latents": 1, "train": 1}  # points of the small run; others none
KILLS, FAULTS = 24, 12  # of the whole run, for each command
NUMBERS = {
    "open": ("EMFILE", "EACCES"),
    "write": ("ENOSPC", "EDQUOT", "EFBIG", "EIO"),
    "fsync": ("EIO",),
    "rename": ("EACCES",),
    "unlink": ("EPERM",),
    "mkdir": ("EROFS",),
}
_TIMES = re.compile(r"\d{8}-\d{6}(?=_)")


def timeless(path: Path) -> bytes:
    """A file's bytes, without what says when it was made and how long that took."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        notes = header.get("__metadata__", {})
        for key in [k for k in notes if k.endswith(("_at", "session_id", ".date"))]:
            del notes[key]
        return json.dumps(header, sort_keys=True).encode() + content[8 + length :]
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in content.splitlines()]
        kept = [{k: v for k, v in row.items() if k[:6] not in ("second", "memory")} for row in rows]
        return json.dumps(kept).encode()
    return content


class Stage:
    """One folder in which a command is run again and again from the same beginning."""

    def __init__(self, ask, home: Path) -> None:
        self.ask = ask
        self.world = World(home / "work")
        self.before = home / "before"
        self.undisturbed: dict[str, tuple[dict[str, bytes], list]] = {}
        World.build(self.world.folder)
        for command in ("cache latents", "cache text", "train"):
            assert ask(self.world.words(command))["code"] == 0
        self.world.folder.rename(self.before)

    def begin(self, command: str) -> None:
        """The folder as it is before the command."""
        shutil.rmtree(self.world.folder, ignore_errors=True)
        shutil.copytree(self.before, self.world.folder)
        gone = {
            "cache latents": ("cache", "clips"),
            "cache text": ("cache", "clips"),
            "train": ("out",),
        }
        for name in gone.get(command, ()):
            shutil.rmtree(self.world.folder / name)

    def run(self, command: str, *more: str, **fault: object) -> dict:
        """Run the command, with a fault or without."""
        words = self.words(command, *more)
        return self.ask(words, under=str(self.world.folder), **fault)

    def words(self, command: str, *more: str) -> list[str]:
        """The words of the command; generation ends with latents, whose bytes depend on no library."""
        kind = ["--output_type", "latent"] if command == "generate" else []
        return self.world.words(command, *kind, *more)

    def end(self, command: str) -> tuple[dict[str, bytes], list]:
        """What the undisturbed command leaves, and the calls it makes."""
        if command not in self.undisturbed:
            self.begin(command)
            found = self.run(command)
            assert found["code"] == 0, found["said"]
            self.undisturbed[command] = self.tree(), found["calls"]
        return self.undisturbed[command]

    def tree(self) -> dict[str, bytes]:
        """Name to bytes; times in names left out, and pages that say when they were written."""
        found = {}
        for path in sorted(self.world.folder.rglob("*")):
            name = path.relative_to(self.world.folder).as_posix()
            if path.is_file() and "report" not in name:
                found[_TIMES.sub("TIME", name)] = timeless(path)
        return found

    def check_whole(self) -> None:
        """Whatever has the name of a result can be read."""
        for path in self.world.folder.rglob("*.safetensors"):
            with safe_open(str(path), "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    file.get_tensor(key)

    def again(self, command: str) -> None:
        """Run it again to its end, and compare."""
        found = self.run(command, *(("--resume", "auto") if command == "train" else ()))
        assert found["code"] == 0, found["said"]
        tree, (expected, _) = self.tree(), self.end_of[command]
        odd = {n for n in tree.keys() | expected.keys() if tree.get(n) != expected.get(n)}
        assert not odd, sorted(odd)
        assert not list(self.world.folder.rglob(".musubi-*.tmp"))

    @property
    def end_of(self) -> dict[str, tuple[dict[str, bytes], list]]:
        """The undisturbed ends that are known."""
        return self.undisturbed


@pytest.fixture(scope="module")
def stage(ask, tmp_path_factory) -> Stage:
    return Stage(ask, tmp_path_factory.mktemp("stage"))


def sample(calls: list, most: int, seed: str) -> list[int]:
    """Numbers of calls: of each kind some, the first and the last among them."""
    chosen: set[int] = set()
    kinds = sorted({call for call, _ in calls})
    chance = random.Random(seed)
    for kind in kinds:
        places = [i for i, (call, _) in enumerate(calls) if call == kind]
        chosen |= {places[0], places[-1]}
        chosen |= set(chance.sample(places, min(len(places), max(1, most // len(kinds)))))
    return chance.sample(sorted(chosen), min(most, len(chosen)))


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_a_call(stage, command):
    most = KILLS if ALL else MOST.get(command, 0)
    if not most:
        pytest.skip("part of the whole run")
    _, calls = stage.end(command)
    for at in sample(calls, most, f"kill {command}"):
        stage.begin(command)
        assert stage.run(command, fault={"at": at, "how": "kill"})["code"] == "killed", calls[at]
        stage.check_whole()
        stage.again(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_refused_by_the_disk(stage, command):
    most = FAULTS if ALL else MOST.get(command, 0)
    if not most:
        pytest.skip("part of the whole run")
    _, calls = stage.end(command)
    for turn, at in enumerate(sample(calls, most, f"fault {command}")):
        call = calls[at][0]
        how = NUMBERS[call][turn % len(NUMBERS[call])]
        stage.begin(command)
        found = stage.run(command, fault={"at": at, "how": how})
        honest(found)
        assert found["code"] in (0, 2), (calls[at], how, found)
        if found["code"] == 2:
            number = getattr(errno, how)
            assert system_reason(OSError(number, "")) in found["said"], (
                calls[at],
                how,
                found["said"],
            )
        stage.check_whole()
        if call != "unlink":
            assert not list(stage.world.folder.rglob(".musubi-*.tmp")), (calls[at], how)
        stage.again(command)
