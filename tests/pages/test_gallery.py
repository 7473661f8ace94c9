"""The gallery of generated clips, and the page of a dataset."""

import shlex

import numpy as np
import pytest

from musubi import registry
from musubi.config.cache import CachePreviewConfig
from musubi.config.pages import GalleryConfig
from musubi.errors import ConfigError, DataError
from musubi.generate.write import metadata, write_images, write_video
from musubi.pages import dataset, gallery
from musubi.plugin import Quiet, Recipe
from musubi.testing import media

from .conftest import BAD, CLIP

RECIPE = Recipe(
    prompt=BAD, negative_prompt="", width=64, height=48, frames=5, fps=16.0, seed=7, steps=9,
    solver="unipc", flow_shift=3.0, guidance_scale=5.0, options={"slg_scale": 2.0, "slg_layers": None},
)  # fmt: skip
FACTS = {
    "architecture": "wan", "task": "t2v", "files": {"dit": "d.safetensors"},
    "loras": [{"file": "cat it.safetensors", "multiplier": 0.5}],
}  # fmt: skip


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "out 猫"
    write_video(CLIP, folder / "a.mp4", 16, metadata(RECIPE, **FACTS))
    write_images(CLIP, folder, "frames", metadata(RECIPE))
    write_images(CLIP[:1], folder / "below", "one", {})
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def test_every_clip_is_shown_with_its_recipe(made, parsed):
    gallery.run(GalleryConfig(folder=[str(made)]), Quiet())
    data = parsed((made / "gallery.html").read_text("utf-8"))
    items = {item["name"]: item for item in data["items"]}
    assert set(items) == {"a.mp4", "frames/frames_000.png", "below/one_000.png", "broken.mp4"}
    assert items["a.mp4"]["prompt"] == BAD and "seed 7" in items["a.mp4"]["facts"]
    assert "cat it" in items["a.mp4"]["facts"]
    assert items["broken.mp4"]["media"]["why"] == "cannot be read"
    assert items["below/one_000.png"]["command"] == ""


def test_the_command_makes_the_same_recipe(made):
    from musubi.cli.line import CommandLine
    from musubi.config.commands import typed
    from musubi.pages.samples import recipe

    words = shlex.split(gallery.command(recipe(made / "a.mp4")))[1:]
    command = typed(words)
    assert command is not None and command.name == "generate"
    line = CommandLine(command, words[1:])  # refuses what the command does not know
    assert line.architecture is registry.find("wan")
    given = {w: words[i + 1] for i, w in enumerate(words) if w.startswith("--")}
    assert given["--prompt"] == BAD and given["--seed"] == "7" and given["--slg_scale"] == "2.0"
    assert given["--lora_weight"] == "cat it.safetensors" and given["--lora_multiplier"] == "0.5"
    assert words[words.index("--video_size") :][:3] == ["--video_size", "48", "64"]


def test_what_cannot_be_a_gallery_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        gallery.run(GalleryConfig(folder=[str(tmp_path / "none")]), Quiet())
    with pytest.raises(DataError, match="no videos"):
        gallery.run(GalleryConfig(folder=[str(tmp_path)]), Quiet())
    with pytest.raises(ConfigError, match="one folder"):
        gallery.run(GalleryConfig(folder=["a", "b"]), Quiet())


@pytest.fixture
def clips(tmp_path):
    """A dataset of a video and an image with Japanese captions, and one file without a caption."""
    folder = tmp_path / "clips"
    media.write_video(folder / "walk.mp4", np.repeat(CLIP, 4, axis=0))
    (folder / "walk.txt").write_text("猫が歩く", encoding="utf-8")
    media.write_video(folder / "alone.mp4", CLIP)
    config = tmp_path / "data.toml"
    config.write_text(
        f'[general]\ncaption_extension = ".txt"\nresolution = [64, 48]\n[[datasets]]\n'
        f'video_directory = "{folder.as_posix()}"\ncache_directory = "{(tmp_path / "c").as_posix()}"\n'
        "target_frames = [1, 5]\n",
        encoding="utf-8",
    )
    return config


def test_a_dataset_is_shown_as_it_will_be_trained(clips, tmp_path, parsed):
    config = CachePreviewConfig(dataset_config=str(clips), mode="html", output=str(tmp_path / "p"))
    dataset.run(config, registry.find("wan"), Quiet())
    (one,) = parsed((tmp_path / "p" / "dataset.html").read_text("utf-8"))["datasets"]
    assert {c["caption"] for c in one["clips"]} == {"猫が歩く"}
    assert {c["bucket"] for c in one["clips"]} == {"64×48", "64×48, 5 frames"}
    assert {c["media"]["kind"] for c in one["clips"]} == {"video", "image"}
    assert [s["name"] for s in one["skipped"]] == ["alone.mp4"] and one["skipped"][0]["reason"]


@pytest.mark.parametrize("width", [390, 1280])
def test_they_open_in_a_browser(made, clips, tmp_path, browse, width):
    gallery.run(GalleryConfig(folder=[str(made)]), Quiet())
    text = browse(made / "gallery.html", width)
    assert text.count("<figure") == 4 and "Copy the command" in text
    config = CachePreviewConfig(dataset_config=str(clips), mode="html", output=str(tmp_path / "p"))
    dataset.run(config, registry.find("wan"), Quiet())
    assert "猫が歩く" in browse(tmp_path / "p" / "dataset.html", width)
