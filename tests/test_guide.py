"""The guide as a new user follows it: its own blocks, run one after the other, on the tiny world.

What is run is read from the page, so that page and test cannot drift apart. `ADAPTED` has all that is
changed: the size of the model, of the pictures, and of the run. The model files are those of the tiny
world in place of the fetched ones.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from musubi.demo import released, shapes
from musubi.testing import media

pytestmark = pytest.mark.pipeline
ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "getting-started.md"
JAPANESE = ROOT / "docs" / "ja" / "getting-started.md"
ADAPTED = {
    "resolution = [480, 320]": "resolution = [64, 64]",
    "--task t2v-1.3B": "--task t2v",
    "--max_train_epochs 16": "--max_train_epochs 2",
    "--video_size 480 832": "--video_size 64 64",
    "--video_length 81": "--video_length 17",
    "--infer_steps 20": "--infer_steps 4",
}
SHORTER = {
    "max_train_steps = 1200": "max_train_steps = 2",
    "sample_at_first = true": "sample_at_first = false",
}
"""Of the settings that `musubi init` writes."""


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def adapted(text: str) -> str:
    for there, here in ADAPTED.items():
        text = text.replace(there, here)
    return text


def commands(page: Path) -> list[list[str]]:
    """The words behind `musubi` of each command of a page, in order."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [one[1:] for one in words if one]


def musubi(words: list[str], folder: Path) -> str:
    """What a command says."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    env |= {name: str(folder / "no settings") for name in ("XDG_CONFIG_HOME", "APPDATA")}
    env.pop("MUSUBI_MODELS", None)
    done = subprocess.run(
        [sys.executable, "-m", "musubi", *words],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The folder after the whole guide, and what each command said."""
    folder = tmp_path_factory.mktemp("a folder of mine")
    released.read().copy(folder / "models")
    scenes = [
        shapes.Scene("red", "ball", "bounces", "blue"),
        shapes.Scene("green", "ring", "falls", "grey"),
    ]
    for name, scene, frames in zip(("grass", "window"), scenes, shapes.draw(scenes), strict=True):
        there_and_back = np.concatenate([frames.numpy(), frames.numpy()[::-1], frames.numpy()])
        path = media.write_video(folder / "cats" / f"{name}.mp4", there_and_back, fps=shapes.RATE)
        path.with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")
    (folder / "cats" / "broken.mp4").write_bytes(b"no video")
    (folder / "cats" / "broken.txt").write_text("a cat", encoding="utf-8")
    (dataset,) = blocks(GUIDE, "toml")
    (folder / "data.toml").write_text(adapted(dataset), encoding="utf-8")
    said = {}
    for words in commands(GUIDE):
        name = " ".join(word for word in words[:2] if not word.startswith("-"))
        if name != "models fetch":
            said[name] = musubi(shlex.split(adapted(shlex.join(words))), folder)
    return folder, said


def test_the_guide_goes_through(walked):
    folder, said = walked
    assert list(said) == ["cache check", "cache preview", "cache latents", "cache text", "train", "generate"]  # fmt: skip
    for path in ("out/cat.safetensors", "out/cat-000001.safetensors", "out/cat/report.html"):
        assert (folder / path).is_file(), path
    assert list((folder / "preview").glob("*.png"))
    assert len(list((folder / "out").glob("*_7.mp4"))) == 1
    assert "Watching at http://127.0.0.1:" in said["train"]
    assert said["train"].splitlines()[-1].startswith("Done: ")


def test_every_change_of_the_guide_for_the_tiny_world_is_one_of_its_words():
    text = GUIDE.read_text(encoding="utf-8")
    assert [there for there in ADAPTED if there not in text] == []


def test_what_the_guide_fetches_is_where_its_commands_look():
    (fetch,) = [words for words in commands(GUIDE) if words[:2] == ["models", "fetch"]]
    place = fetch[fetch.index("--to") + 1]
    named = [words[words.index("--models") + 1] for words in commands(GUIDE) if "--models" in words]
    assert len(named) == 4 and set(named) == {place}


def test_a_file_that_is_left_out_is_told_once_a_command(walked):
    for name in ("cache check", "cache preview", "cache latents", "train"):
        lines = [line for line in walked[1][name].splitlines() if "broken.mp4" in line]
        assert len(lines) == 1, (name, walked[1][name])


def test_nothing_is_warned_of(walked):
    assert [line for text in walked[1].values() for line in text.splitlines() if "warning:" in line] == []  # fmt: skip


def test_the_gallery_shows_what_was_made(walked):
    assert "`musubi gallery out`" in GUIDE.read_text(encoding="utf-8")
    assert "out/gallery.html" in musubi(["gallery", "out"], walked[0]).replace("\\", "/")


def test_the_japanese_guide_goes_through(walked):
    folder = walked[0]
    (folder / "data.toml").rename(folder / "data of the guide.toml")
    others = ("models", "plan", "cache caption")  # the hub, and a language model
    for words in commands(JAPANESE):
        if words[0] in others or " ".join(words[:2]) in others:
            continue
        said = musubi(shlex.split(adapted(shlex.join(words))), folder)
        if words[0] == "init":
            settings = folder / "train.toml"
            text = settings.read_text(encoding="utf-8")
            for there, here in SHORTER.items():
                assert there in text
                text = text.replace(there, here)
            settings.write_text(text, encoding="utf-8")
        if "--resume" in words:
            assert "The run is complete: 2 of 2 steps are made." in said
    assert (folder / "out" / "cats.safetensors").is_file()
    assert len(list((folder / "out").glob("*_7.mp4"))) == 2
