"""Damaged and hostile files: a sentence each, and never other content taken for what was written.

Every case is made from a seed, so that it comes back.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ALL, honest
from world import World

COUNT = 24 if ALL else 1  # mutations of each kind of file
SMALL = {
    "cache/red_0064x0048_wan.safetensors",
    "weights.safetensors",
    "out/cat.safetensors",
    "data.toml",
}


def flip(data: bytes, chance: random.Random) -> bytes:
    """One bit."""
    out = bytearray(data)
    out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def cut(data: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return data[: chance.randrange(len(data))]


def blank(data: bytes, chance: random.Random) -> bytes:
    """A page of zeros, as a power cut leaves it."""
    at = chance.randrange(len(data))
    return data[:at] + bytes(min(4096, len(data) - at)) + data[at + 4096 :]


def swap(data: bytes, chance: random.Random) -> bytes:
    """Some bytes are others."""
    at = chance.randrange(len(data))
    return data[:at] + chance.randbytes(8) + data[at + 8 :]


def longer(data: bytes, chance: random.Random) -> bytes:
    """Something stands behind it."""
    return data + chance.randbytes(chance.randrange(1, 64))


def edited(data: bytes, chance: random.Random) -> bytes:
    """A word of JSON, TOML or text is another: numbers without bounds, other types, deep nesting."""
    (start, text, end) = parts(data)
    words = [
        b"-1",
        b"0",
        b"1e999",
        b"NaN",
        b"9" * 5000,
        b"[" * 20_000,
        b'"a\\u0000b"',
        b"null",
        b"{}",
    ]
    places = [i for i, byte in enumerate(text) if byte in b"0123456789"] or [0]
    at = chance.choice(places)
    stop = at
    while stop < len(text) and text[stop] in b"0123456789.":
        stop += 1
    text = text[:at] + chance.choice(words) + text[stop:]
    return struct.pack("<Q", len(text)) + text + end if start else text + end


def parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    """The length, the header and the rest of a safetensors file; of other files all is text."""
    if data[8:9] != b"{":
        return b"", data, b""
    length = struct.unpack("<Q", data[:8])[0]
    return data[:8], data[8 : 8 + length], data[8 + length :]


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    cut,
    blank,
    swap,
    longer,
    edited,
)


def mutations(path: Path, kind: str) -> list[tuple[str, bytes]]:
    """Name and content of each case of a kind of file."""
    if not ALL and not any(kind.endswith(name) for name in SMALL):
        pytest.skip("part of the whole run")
    data = path.read_bytes()
    found = []
    for number in range(COUNT):
        chance = random.Random(f"{kind} {number}")
        change = CHANGES[number % len(CHANGES)] if ALL else chance.choice(CHANGES)
        content = change(data, chance)
        if content != data:
            found.append((f"{kind} {number}, {change.__name__}", content))
    return found


@pytest.fixture
def damaged(finished, tmp_path):
    """A copy of the world in which one file is changed for a moment."""
    world = finished.copy(tmp_path / "world")

    def change(name: str, content: bytes) -> World:
        (world.folder / name).write_bytes(content)
        return world

    change.world = world  # type: ignore[attr-defined]
    return change


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("cache/red_0064x0048_wan.safetensors", "cache latents"),
        ("clips/c_00000-005_0064x0048_wan.safetensors", "cache latents"),
        ("cache/red_wan_te.safetensors", "cache text"),
        ("cache/empty-caption.wan.safetensors", "cache text"),
    ],
)
def test_records(ask, finished, damaged, name, command):
    """A damaged record is refused in training or is as good as absent, and caching makes it again."""
    whole = (finished.folder / name).read_bytes()
    for case, content in mutations(finished.folder / name, name):
        world = damaged(name, content)
        found = ask(world.words("train", "--max_train_steps", "3", "--output_name", "x"))
        honest(found)
        if "empty-caption" not in name:  # which a run without dropout does not read
            changed = parts(content)[1].rstrip() != parts(whole)[1].rstrip() or (
                parts(content)[2] != parts(whole)[2]
            )
            assert found["code"] == 2 or not changed, (case, found["said"])
        again = ask(world.words(command))
        assert again["code"] == 0, (case, again["said"])
        assert (world.folder / name).read_bytes() == whole, case


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors", "optimizer.pt", "random.pt"])
def test_states(ask, finished, damaged, name):
    """A damaged state is refused by name, and `auto` goes on from the newest that is whole."""
    state = "out/cat-step00000004-state"
    path = finished.folder / state / name
    for case, content in mutations(path, name):
        world = damaged(f"{state}/{name}", content)
        words = ("--max_train_steps", "5", "--save_every_n_steps", "9", "--output_name")
        found = ask(world.words("train", *words, "x", "--resume", world.folder / state))
        honest(found)
        assert found["code"] == 2, (case, found["said"])
    # The final state is of the same step, and gone for this.
    shutil.rmtree(world.folder / "out" / "cat-state")
    found = ask(world.words("train", *words, "cat", "--resume", "auto"))
    assert found["code"] == 0, found["said"]
    assert (
        "cat-step00000004-state is broken" in found["said"] or "is not the state" in found["said"]
    )
    assert "Going on from" in found["said"] and "after step 2" in found["said"]


@pytest.mark.parametrize(
    ("name", "command", "words"),
    [
        ("models/dit/dit.safetensors", "lora merge", ()),
        ("models/vae/vae.safetensors", "cache latents", ()),
        ("models/t5/t5.safetensors", "cache text", ()),
        ("models/t5/tokenizer/tokenizer.json", "cache text", ()),
        ("out/cat.safetensors", "lora info", ()),
        ("out/cat.safetensors", "lora merge", ()),
        ("out/cat.safetensors", "train", ("--network_weights", "out/cat.safetensors")),
        ("data.toml", "cache check", ()),
        ("prompts.txt", "generate", ("--from_file", "prompts.txt", "--output_type", "latent")),
        ("images/red.png", "cache latents", ()),
        ("videos/c.mp4", "cache latents", ()),
        ("images/red.txt", "cache text", ()),
    ],
)
def test_files_of_others(ask, finished, damaged, name, command, words):
    """Files that carry no digest of ours: whatever is in them, the answer is a sentence or a result."""
    for case, content in mutations(finished.folder / name, f"{command} {name}"):
        world = damaged(name, content)
        there = [str(world.folder / w) if w.startswith(("out/", "prompts")) else w for w in words]
        found = ask(world.words(command, *there))
        honest(found)
        assert found["code"] in (0, 2), (case, found["said"])


def test_latents(ask, finished, damaged):
    """What a latent file says is no part of a path, and what it holds is checked."""
    (path,) = finished.made.glob("*_latent.safetensors")
    name = path.relative_to(finished.folder).as_posix()
    _, header, body = parts(path.read_bytes())
    facts = json.loads(header)
    facts["__metadata__"]["seeds"] = "../../../outside"
    text = json.dumps(facts).encode()
    cases = [("seeds", struct.pack("<Q", len(text)) + text + body)]
    cases += mutations(path, "latents") if ALL else []
    for case, content in cases:
        world = damaged(name, content)
        found = ask(world.words("generate", "--latent_path", world.folder / name))
        honest(found)
        assert found["code"] in (0, 2), (case, found["said"])
        assert not list(world.folder.parent.glob("*outside*")), case
        assert not list(world.folder.glob("*outside*")), case
