"""A run's page: everything inside it, read from files alone, whole whatever the files hold."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from musubi.errors import ConfigError
from musubi.pages import columns, curves, live
from musubi.pages.account import Account
from musubi.pages.embed import Embedder
from musubi.pages.run import RunFolder, runs_in
from musubi.plugin import Quiet

from .conftest import BAD, make_run


def page_of(folder: Path) -> str:
    return live.write(RunFolder(folder)).read_text(encoding="utf-8")


def test_the_page_holds_the_run(run_folder, parsed):
    text = page_of(run_folder)
    data = parsed(text)
    assert "<img src=x" not in text and "hf_secret" not in text
    assert data["now"]["step"] == 20 and data["now"]["seconds"] == 2.0
    assert {s["key"] for s in data["series"]} >= {"loss/current", "loss/validation", "seconds"}
    assert data["noted"]["items"][0]["caption"] == BAD
    table = data["samples"]
    assert table["moments"] == [0, 10] and len(table["prompts"]) == 2  # epoch 1 ends with step 10
    assert table["prompts"][0]["prompt"] == BAD
    drawn = [cell for row in table["cells"] for cell in row if cell]
    assert [cell["src"][:10] for cell in drawn] == ["data:video", "data:video", "data:image"]
    assert (run_folder / drawn[0]["full"]).is_file()
    chosen = {r["name"] for g in data["settings"] for r in g["rows"] if r["chosen"]}
    assert {"arch", "learning_rate", "save_every_n_steps"} <= chosen
    assert "--resume auto" in data["commands"][0]["text"]


def test_norms_are_those_of_the_change(run_folder, parsed):
    norms = parsed(page_of(run_folder))["norms"]
    # up @ down is 4 x 4 of 2 (i + 1)^2, and its norm 4 times that
    assert norms["columns"] == ["blocks 0", "blocks 1"] and norms["values"] == [[8.0, 32.0]]
    assert norms["total"] == [["step 10", pytest.approx((8**2 + 32**2) ** 0.5, rel=1e-4)]]


@pytest.mark.parametrize("gone", ["report", "config.toml", "../sample", "metrics.jsonl"])
def test_a_page_is_drawn_from_what_is_left(run_folder, parsed, gone):
    place = run_folder / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert parsed(page_of(run_folder))["name"] == "cat"


@pytest.mark.parametrize("file", ["config.toml", "report/run.json", "metrics.jsonl"])
def test_damaged_files_do_not_stop_a_page(run_folder, parsed, file):
    (run_folder / file).write_bytes(b"\xff\x00[]{ null")
    for sample in (run_folder.parent / "sample").iterdir():
        sample.write_bytes(b"no video")
    next(run_folder.parent.glob("*.safetensors")).write_bytes(b"no weights")
    data = parsed(page_of(run_folder))
    assert data["norms"] is None
    assert all("why" in cell for row in data["samples"]["cells"] for cell in row if cell)


def test_what_a_page_cannot_bear_is_linked(run_folder):
    embed = Embedder(run_folder, budget=1)
    data = RunFolder(run_folder).data(embed)
    cells = [c for row in data["samples"]["cells"] for c in row if c]
    assert [("src" in c, "full" in c) for c in cells] == [
        (False, True),
        (True, True),  # the newest moment first
        (False, True),
    ]
    assert embed.left_out == 2


def test_runs_are_found_below_a_folder(tmp_path):
    for name in ("one", "two"):
        make_run(tmp_path / "deep" / "out", name)
    assert {r.name for r in runs_in([tmp_path / "deep"])} == {"one", "two"}
    assert [r.name for r in runs_in([tmp_path / "deep" / "out" / "one"])] == ["one"]
    with pytest.raises(ConfigError, match="no folder"):
        runs_in([tmp_path / "nowhere"])


def test_a_live_page_follows_the_run_and_says_how_it_ended(tmp_path, parsed):
    folder = make_run(tmp_path)
    account = Account(**{**json.loads((folder / "report" / "run.json").read_text()), "state": "running"})  # fmt: skip
    page = live.LivePage(folder, account, Quiet())
    page.begin()
    deadline = time.monotonic() + 30
    while not page.path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert parsed(page.path.read_text("utf-8"))["noted"]["state"] == "running"
    page.end("failed", "the disk is full")
    noted = parsed(page.path.read_text("utf-8"))["noted"]
    assert (noted["state"], noted["message"]) == ("failed", "the disk is full")
    assert not list(folder.rglob("*tmp*"))


def test_a_page_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path):
    folder, said = make_run(tmp_path), Quiet()
    account = Account(**json.loads((folder / "report" / "run.json").read_text()))
    (folder / "report.html").mkdir()
    page = live.LivePage(folder, account, said)
    page.begin()
    page.tick()
    page.end("finished")
    assert len(said.warnings) == 1 and "Training goes on" in said.warnings[0]


def test_a_thinned_curve_keeps_its_mean_and_its_end():
    x, y = list(range(1, 10001)), [float(i % 7) for i in range(10000)]
    thin_x, thin_y = curves.thinned(x, y, 100)
    assert len(thin_x) == 100 and thin_x[-1] == 10000
    assert sum(thin_y) / 100 == pytest.approx(sum(y) / 10000)
    drawn = curves.series([{"step": i, "loss/current": v} for i, v in zip(x, y, strict=True)])
    assert len(drawn[0]["x"]) <= curves.POINTS and len(drawn[0]["smooth"]) == len(drawn[0]["x"])
    assert drawn[0]["smooth"][-1] == pytest.approx(3.0, abs=0.05)  # the mean of 0 to 6


def test_a_line_cut_short_is_left_out(run_folder):
    entries = columns.read(run_folder / "metrics.jsonl")
    assert entries[-1]["step"] == 20 and len(entries) == 22


@pytest.mark.parametrize("width", [390, 1280])
def test_it_opens_in_a_browser(run_folder, browse, width):
    text = browse(live.write(RunFolder(run_folder)), width)
    assert text.count("<video") == 3 and text.count('class="chart"') == 6
    assert "&lt;/script&gt;&lt;img" in text and 'class="pill running"' in text


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(
    ("noted", "pill", "words"),
    [
        ({"state": "running"}, "silent", "no sign of life"),  # last heard of long ago
        ({"state": "failed", "message": "the disk is full"}, "failed", "the disk is full"),
        ({"state": "finished"}, "finished", "finished"),
    ],
)
def test_a_page_says_how_its_run_is(tmp_path, browse, noted, pill, words, width):
    """A run that was killed leaves "running" behind: the page must not say that it runs."""
    folder = make_run(tmp_path, **noted)
    note = folder / "report" / "run.json"
    if pill == "silent":
        old = json.loads(note.read_text(encoding="utf-8")) | {"updated": time.time() - 7200}
        note.write_text(json.dumps(old), encoding="utf-8")
    text = browse(live.write(RunFolder(folder)), width)
    assert f'class="pill {pill}"' in text and words in text
    if pill == "silent":
        assert 'class="pill running"' not in text
        assert re.search(r"The last sign of life was 2\W*(h|:00)", text)
        assert "--resume" in text
