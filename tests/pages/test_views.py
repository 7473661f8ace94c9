"""The other views in a browser, and the process that serves them beside a run."""

import time

import pytest

from musubi.demo.page import Story, write_page
from musubi.pages import document, live
from musubi.pages.watch import site
from musubi.plugin import Quiet

from .conftest import BAD, CLIP, make_run


@pytest.mark.parametrize("width", [390, 1280])
def test_the_demo_and_the_list_of_runs_open(tmp_path, browse, width):
    story = Story(BAD, [["train", "--x", BAD]], [0.3, 0.2, 0.1], {0: CLIP, 5: CLIP}, [CLIP], [CLIP], [BAD], (0, 1), [("a ball", CLIP, CLIP)], (1, 1))  # fmt: skip
    write_page(story, tmp_path / "index.html")
    text = browse(tmp_path / "index.html", width)
    assert text.count("<video") == 6 and text.count('class="chart"') == 1
    for name in ("one", "two", "a-name-as-long-as-some-people-write-them-v2-final-final"):
        make_run(tmp_path / "out", name)
    page = site([tmp_path / "out"]).page("")
    assert page is not None
    document.write(tmp_path / "runs.html", page.title, page.data())
    text = browse(tmp_path / "runs.html", width)
    assert text.count("runcard") >= 3 and "Side by side" in text


@pytest.mark.parametrize("width", [390, 1280])
def test_a_run_without_anything_is_a_page_too(tmp_path, browse, width):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "metrics.jsonl").touch()
    page = site([tmp_path / "new"]).page("run/0")
    assert page is not None
    document.write(tmp_path / "page.html", page.title, page.data())
    assert "What to type next" in browse(tmp_path / "page.html", width)


def test_a_run_is_served_by_another_process_that_ends_with_it(tmp_path):
    make_run(tmp_path / "out")
    said = Quiet()
    with live.served(tmp_path / "out", said):
        deadline = time.monotonic() + 240
        while not said.notes and time.monotonic() < deadline:
            time.sleep(0.05)
    assert said.notes and said.notes[0].startswith("Watching at http://127.0.0.1:")
