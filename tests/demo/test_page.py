"""The page of the demo: everything inside it, nothing missing, nothing unescaped."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from musubi.config.demo import DemoConfig
from musubi.demo import pictures
from musubi.demo.page import Story, curve, write_page
from musubi.demo.run import MARK, run
from musubi.errors import ConfigError
from musubi.plugin import Quiet

CLIP = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "data")]
        if tag not in ("meta", "link", "img", "br", "path", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_page_needs_no_other_file(tmp_path):
    story = Story(
        "<a & b>",
        commands=[["train", "--out", "a b<"]],
        losses=[0.3, 0.2, 0.1],
        by_step={0: CLIP, 20: CLIP},
        before=[CLIP],
        after=[CLIP],
        prompts=["a 'green' <ball>"],
        found=(0, 1),
    )
    write_page(story, tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Links()
    page.feed(text)
    assert page.found and all(link.startswith("data:") for link in page.found)
    assert not page.open
    assert (
        "<ball>" not in text
        and "<a & b>" not in text
        and "'a b&lt;'" in text.replace("&#x27;", "'")
    )
    assert "http" not in text and len(re.findall("<img", text)) == 4


def test_a_curve_has_a_point_for_each_step_inside_its_frame():
    drawn = curve([1.0, 0.5, 0.25, 0.25])
    assert drawn.count("<circle") == 4
    heights = [float(y) for y in re.findall(r"cy='([\d.]+)'", drawn)]
    assert heights[0] < heights[1] < heights[2] and 0 < min(heights) < max(heights) < 200
    assert "<svg" not in curve([])


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
