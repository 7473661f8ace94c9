"""The dataset file: where a value comes from, and what is refused in which words."""

import dataclasses
import json

import pytest

from musubi import registry
from musubi.config.dataset import read_dataset_config
from musubi.errors import ConfigError
from musubi.plugin import Input, Option

CONTROL = Input(
    name="control", kind="video", help="", column="control_path", directory="control_directory"
)


@pytest.fixture
def wan():
    found = registry.find("wan")
    first = dataclasses.replace(found.tasks[0], inputs=(CONTROL,))
    return dataclasses.replace(found, tasks=(first, *found.tasks[1:]))


@pytest.fixture
def read(tmp_path, wan):
    """Writes a dataset file beside the folders `images`, `videos` and `control`, and reads it."""
    for name in ("images", "videos", "control"):
        (tmp_path / name).mkdir()
    (tmp_path / "list.jsonl").write_text("")

    def call(text, architecture=wan, name="data.toml", **more):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return read_dataset_config(tmp_path / name, architecture, architecture.tasks[0], **more)

    return call


HEAD = "[[datasets]]\nimage_directory = 'images'\ncaption_extension = '.txt'\nresolution = 64\n"
VIDEO = HEAD.replace("image_directory = 'images'", "video_directory = 'videos'")


def test_defaults(read, tmp_path):
    (entry,) = read(HEAD.replace("resolution = 64\n", "")).datasets
    assert (entry.kind, entry.directory, entry.cache_directory) == (
        "image",
        tmp_path / "images",
        tmp_path / "images",
    )
    assert (entry.resolution, entry.batch_size, entry.num_repeats) == ((960, 544), 1, 1)
    assert (entry.enable_bucket, entry.bucket_no_upscale, entry.index) == (False, False, 0)
    (entry,) = read(VIDEO).datasets
    assert (entry.target_frames, entry.frame_extraction, entry.max_frames) == ((1,), "head", 129)
    assert (entry.frame_stride, entry.frame_sample, entry.source_fps) == (1, 1, None)


def test_dataset_then_general_then_command_line(read):
    text = "[general]\nbatch_size = 2\ntarget_frames = [5]\n" + HEAD
    given = {"batch_size": 9, "num_repeats": 3}
    (entry,) = read(text + "batch_size = 4\n", command_line=given).datasets
    assert (entry.batch_size, entry.num_repeats) == (4, 3)
    (entry,) = read(text, command_line=given).datasets
    assert entry.batch_size == 2
    (entry,) = read(HEAD, command_line={**given, "num_repeats": None}).datasets
    assert (entry.batch_size, entry.num_repeats) == (9, 1)


def test_json_is_read_too(read):
    table = {"image_directory": "images", "caption_extension": ".txt", "resolution": [64, 48]}
    (entry,) = read(json.dumps({"general": {}, "datasets": [table]}), name="data.json").datasets
    assert entry.resolution == (64, 48)


def test_paths_from_the_working_directory_first(read, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "images").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    (entry,) = read(HEAD).datasets
    assert entry.directory is not None
    assert entry.directory.resolve() == elsewhere / "images"
    (entry,) = read(VIDEO + "cache_directory = 'made later'\n").datasets
    assert entry.cache_directory == tmp_path / "made later"  # where the videos were found


def test_rounding_of_target_frames_is_told_once(read):
    found = read(VIDEO + "target_frames = [24, 21, 1, 49]\n")
    assert found.datasets[0].target_frames == (1, 21, 49)
    (note,) = found.notes
    assert "24 to 21" in note and "4 * k + 1" in note


def test_source_fps_may_be_whole(read):
    assert read(VIDEO + "source_fps = 30\n").datasets[0].source_fps == 30.0
    assert read(VIDEO + "source_fps = 29.97\n").datasets[0].source_fps == 29.97


def test_an_extension_without_its_dot(read):
    found = read(HEAD.replace("'.txt'", "'txt'"))
    assert found.datasets[0].caption_extension == ".txt"
    assert "is read as" in found.notes[0]


def test_own_keys_of_architectures(read, wan):
    import dataclasses

    own = Option(name="fp_window", type=int, help="x", commands=(), default=9)
    other = dataclasses.replace(wan, dataset_options=(own,))
    assert read(HEAD, other).datasets[0].options == {"fp_window": 9}
    assert read(HEAD + "fp_window = 3\n", other).datasets[0].options == {"fp_window": 3}
    with pytest.raises(ConfigError, match="fp_window"):
        read(HEAD + "fp_window = 'x'\n", other)
    with pytest.raises(ConfigError, match="'fp_window' is not a known key"):
        read(HEAD + "fp_window = 3\n")


def test_keys_of_other_installed_architectures_are_passed_over(read, wan, monkeypatch):
    import dataclasses

    own = Option(name="fp_window", type=int, help="x", commands=(), default=9)
    other = dataclasses.replace(wan, name="other", dataset_options=(own,))
    monkeypatch.setattr(registry, "names", lambda: ["broken", "other", "wan"])

    def find(name):
        if name == "broken":
            raise ConfigError("It cannot be imported.")
        return other

    monkeypatch.setattr(registry, "find", find)
    assert "fp_window" not in read(HEAD + "fp_window = 3\n").datasets[0].options


LISTED = HEAD.replace("image_directory = 'images'", "image_jsonl_file = 'list.jsonl'")


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["names no dataset"]),
        ("[[datasets]\n", ["is not TOML", "line 1"]),
        ("batch_size = 2\n" + HEAD, ["'batch_size' stands outside", "under one of them"]),
        ("[genral]\n" + HEAD, ["'genral'", "Did you mean 'general'"]),
        ("datasets = 3\n", ["names no dataset"]),
        (
            HEAD + "enable_bukcet = true\n",
            ["number 1", "enable_bukcet", "Did you mean 'enable_bucket'"],
        ),
        ("[general]\nimage_directory = 'images'\n" + HEAD, ["belongs to one dataset"]),
        (HEAD + "batch_size = 0\n", ["batch_size = 0"]),
        (HEAD + "batch_size = '2'\n", ["batch_size = '2'", "integer"]),
        (HEAD + "enable_bucket = 1\n", ["enable_bucket = 1", "boolean"]),
        (VIDEO + "frame_extraction = 'heads'\n", ["frame_extraction = 'heads'", "'uniform'"]),
        (VIDEO + "target_frames = []\n", ["target_frames = []"]),
        (VIDEO + "target_frames = [0]\n", ["target_frames = [0]"]),
        (VIDEO + "target_frames = 24\n", ["target_frames = 24", "[1, 25, 49]"]),
        (VIDEO + "source_fps = 0\n", ["source_fps = 0"]),
        (HEAD + "target_frames = [1]\n", ["'target_frames' means nothing for images"]),
        (HEAD.replace("64", "[64]"), ["resolution = [64]"]),
        (HEAD.replace("64", "8"), ["resolution = 8", "at least 16"]),
        (HEAD.replace("64", "[100, 64]"), ["[96, 64]", "enable_bucket = true"]),
        (HEAD + "video_directory = 'videos'\n", ["image_directory and video_directory"]),
        ("[[datasets]]\nresolution = 64\n", ["names no directory"]),
        (HEAD.replace("'images'", "'imagse'"), ["'imagse'", "does not exist", "images"]),
        (HEAD + "control_directory = 'contrl'\n", ["'contrl'", "control"]),
        (HEAD + "cache_directory = 'list.jsonl'\n", ["is a file"]),
        (HEAD.replace("caption_extension = '.txt'\n", ""), ["caption_extension is not given"]),
        (LISTED, ["no cache_directory"]),
        (LISTED + "cache_directory = 'c'\ncontrol_directory = 'control'\n", ["control_path"]),
        (HEAD * 2, ["number 1 and 2", "cache_directory"]),
        (
            HEAD + "cache_directory = 'c'\n" + VIDEO + "cache_directory = 'x/../c'\n",
            ["number 1 and 2"],
        ),
    ],
)
def test_what_is_refused(read, text, fragments):
    with pytest.raises(ConfigError) as caught:
        read(text)
    said = str(caught.value)
    assert "data.toml" in said
    for fragment in fragments:
        assert fragment in said


def test_files_that_cannot_be_read(tmp_path, wan, read):
    read(HEAD)
    with pytest.raises(ConfigError, match=r"dat\.toml does not exist.*data\.toml"):
        read_dataset_config(tmp_path / "dat.toml", wan, wan.tasks[0])
    (tmp_path / "latin.toml").write_bytes("# é".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_dataset_config(tmp_path / "latin.toml", wan, wan.tasks[0])
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_dataset_config(tmp_path / "bad.json", wan, wan.tasks[0])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_dataset_config(tmp_path, wan, wan.tasks[0])
