"""From a folder of clips to files that the other commands take as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from musubi import registry
from musubi.cli.line import CommandLine
from musubi.config.commands import typed
from musubi.config.dataset import read_dataset_config
from musubi.config.init import InitConfig
from musubi.config.prompts import grammar, read_prompt_file
from musubi.config.resolve import read_file, resolve
from musubi.config.task import choose_task
from musubi.errors import ConfigError, DataError
from musubi.init import size
from musubi.init.run import run
from musubi.plugin import Quiet
from musubi.testing import media

WAN = registry.find("wan")
CLIP = np.random.default_rng(0).integers(0, 255, (33, 64, 96, 3), dtype=np.uint8)


@pytest.fixture
def clips(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no settings"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "no settings"))
    monkeypatch.delenv("MUSUBI_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my cat 猫"
    media.write_video(folder / "a.mp4", CLIP)
    (folder / "a.txt").write_text('a cat --d runs\non "grass"', encoding="utf-8")
    media.write_video(folder / "b.mp4", CLIP[:20])
    media.write_image(folder / "c.png", CLIP[0])
    (folder / "c.txt").write_text("a cat", encoding="utf-8")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def start(folder: Path, ask=None, **more: object) -> Quiet:
    said = Quiet()
    run(InitConfig(folder=[str(folder)], **more), said, ask)
    return said


def test_the_files_are_taken_by_the_other_commands(clips, tmp_path):
    said = start(clips, arch="wan", task="t2v-1.3B", goal="person", name="cat", no_ask=True)
    data = read_dataset_config(tmp_path / "data.toml", WAN, WAN.task("t2v"))
    assert [d.kind for d in data.datasets] == ["video", "image"]
    assert data.datasets[0].place == clips and data.datasets[0].target_frames
    file = read_file(tmp_path / "train.toml")
    command = typed(["train"])
    assert command is not None and file.arch == "wan"
    config = resolve(command.options(WAN), {}, file)
    assert (config.network_dim, config.network_alpha, config.task) == (32, 16, "t2v-1.3B")
    prompts = read_prompt_file(tmp_path / "prompts.txt", grammar(WAN, "preview"))
    assert [p["prompt"] for p in prompts][:2] == ['a cat - d runs on "grass"', "a cat"]
    assert len(prompts) == 3 and all(p["width"] % 16 == 0 for p in prompts)
    assert any("broken.mp4" in w for w in said.warnings)
    assert any("No caption" in w and "b.mp4" in w for w in said.warnings)


def test_the_commands_to_type_are_commands(clips):
    import shlex

    said = start(clips, arch="wan", task="t2v-1.3B", goal="style", no_ask=True)
    lines = [n.strip() for n in said.notes if n.startswith("  musubi ")]
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line)[1:]
        command = typed(words)
        assert command is not None, line
        CommandLine(command, words[len(command.words) :])


def test_questions_are_answered_by_number_or_name(clips, tmp_path):
    answers = iter(["wan", "2", "nonsense", "motion", ""])
    start(clips, ask=lambda question: next(answers))
    text = (tmp_path / "train.toml").read_text("utf-8")
    assert 'arch = "wan"' in text and f'task = "{WAN.variants[1].name}"' in text
    assert "discrete_flow_shift = 5" in text and not list(answers)


def test_files_that_are_there_stay(clips, tmp_path):
    (tmp_path / "train.toml").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        start(clips, arch="wan", no_ask=True)
    assert (tmp_path / "train.toml").read_text() == "mine"
    assert not (tmp_path / "data.toml").exists()
    start(clips, arch="wan", no_ask=True, force=True)
    assert (tmp_path / "train.toml").read_text() != "mine"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"arch": "wam"}, "no architecture 'wam'"),
        ({"arch": "wan", "task": "t2v-99B"}, "no task"),
        ({"arch": "wan", "vram": "lots"}, "lots"),
        ({"arch": "wan", "name": "a/b"}, "--name"),
        ({"arch": "wan", "vram": "auto"}, "auto"),
    ],
)
def test_what_cannot_be_is_refused(clips, more, words):
    import torch

    if more.get("vram") == "auto" and torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(ConfigError, match=words):
        start(clips, no_ask=True, **more)


def test_a_folder_without_clips_is_refused(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        start(tmp_path / "nowhere", arch="wan", no_ask=True)
    (tmp_path / "inside").mkdir()
    with pytest.raises(DataError, match="no clips") as error:
        start(tmp_path, arch="wan", no_ask=True)
    assert error.value.fix is not None and "inside" in error.value.fix


def test_sizes_are_those_that_clips_fill_and_a_card_bears():
    choice = choose_task(WAN, "t2v-1.3B")
    given = {"architecture": WAN, "choice": choice, "motion": False, "report": Quiet()}
    large = size.choose(area=1920 * 1080, seconds=5.5, vram="80GiB", **given)
    assert (large.width, large.height, large.frames, large.planned) == (832, 480, 81, True)
    small = size.choose(area=64 * 96, seconds=0.7, vram=None, **given)
    assert (small.width, small.height, small.frames) == (80, 80, 9)
    still = size.choose(area=1920 * 1080, seconds=0, vram=None, **given)
    assert still.frames == 1


def test_models_that_are_known_are_written_down(clips, tmp_path, monkeypatch):
    from musubi.testing import twins

    twins.write_twins(WAN, tmp_path / "models", task=WAN.task("t2v"))
    monkeypatch.setenv("MUSUBI_MODELS", str(tmp_path / "models"))
    said = start(clips, arch="wan", task="t2v-1.3B", no_ask=True)
    values = read_file(tmp_path / "train.toml").values
    assert "vae" in values and "t5" in values and "dit" not in values  # the twin is no 1.3B
    assert any("models fetch" in note and str(tmp_path / "models") in note for note in said.notes)
    assert json.loads(json.dumps(values["vae"])).startswith(str(tmp_path))


def test_what_is_missing_from_a_known_folder_is_fetched_into_it(clips, tmp_path, monkeypatch):
    place = tmp_path / "my models"
    place.mkdir()
    monkeypatch.setenv("MUSUBI_MODELS", str(place))
    said = start(clips, arch="wan", task="t2v-1.3B", goal="person", no_ask=True)
    (fetch,) = [note for note in said.notes if "models fetch" in note]
    assert fetch.endswith(f'--to "{place.as_posix()}"')
    assert 'models = "models"' not in (tmp_path / "train.toml").read_text(encoding="utf-8")
