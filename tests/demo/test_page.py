"""The page of the demo: everything inside it, nothing missing, nothing unescaped."""

import json
import re

import numpy as np
import pytest

from musubi.config.demo import DemoConfig
from musubi.demo import lesson, pictures, shapes
from musubi.demo.page import Story, write_page
from musubi.demo.run import MARK, run
from musubi.errors import ConfigError
from musubi.plugin import Quiet

CLIP = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)


def test_the_page_needs_no_other_file(tmp_path):
    story = Story(
        "<a & b>",
        commands=[["train", "--out", "a b<"], ["cache", "text", "--x"]],
        losses=[0.3, 0.2, 0.1],
        by_step={0: CLIP, 20: CLIP},
        before=[CLIP],
        after=[CLIP],
        prompts=["a 'green' <ball>"],
        found=(0, 1),
        controls=[("a red <ring>", CLIP, CLIP)],
        kept=(1, 1),
    )
    write_page(story, tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<ball>" not in text and "<a & b>" not in text and "<ring>" not in text
    shown = json.loads(re.findall("<script type='application/json'[^>]*>(.*?)</script>", text)[0])
    assert shown["title"] == "<a & b>" and shown["found"] == [0, 1, 1]
    assert shown["control"]["value"] == "1 of 1"
    assert [c["title"] for c in shown["commands"]] == ["train", "cache text"]
    assert shown["commands"][0]["text"] == "musubi train --out 'a b<'"
    media = [one["media"] for one in shown["by_step"]]
    media += [p[k] for p in (*shown["pairs"], *shown["controls"]) for k in ("before", "after")]
    assert len(media) == 6 and all(one["src"].startswith("data:video/mp4") for one in media)
    assert shown["loss"]["y"] == [0.3, 0.2, 0.1]


def test_a_story_without_anything_is_a_page_too(tmp_path):
    write_page(Story("nothing"), tmp_path / "index.html")
    assert "nothing" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_known_things_are_recognised_in_what_is_drawn_of_them():
    scenes = lesson.controls(4)
    drawn = list(shapes.draw(scenes).numpy())
    assert lesson.kept(scenes, drawn) == 4 and lesson.learned(drawn) == 0
    assert lesson.kept(scenes, drawn[::-1]) == 0
    trained = {(s.colour, s.shape, s.motion) for s in lesson.ordinary(5, lesson.KNOWN)}
    assert not trained & {(s.colour, s.shape, s.motion) for s in scenes}


def test_pictures_are_written_and_read_back(tmp_path):
    pictures.contact_sheet([CLIP, CLIP], tmp_path / "sheet.png")
    pictures.side_by_side([CLIP], [CLIP], tmp_path / "pair.mp4")
    assert pictures.read_clip(tmp_path / "pair.mp4").shape == (15, 128, 256, 3)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for keep in (False, True):
        with pytest.raises(ConfigError, match="--out"):
            run(DemoConfig(out=str(tmp_path), keep=keep), Quiet())
    assert (tmp_path / "thesis.txt").read_text() == "mine" and not (tmp_path / MARK).exists()
