"""The server: what it shows, and what it refuses: other names, other addresses, other files."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from musubi.pages.serve import Files, Server
from musubi.pages.watch import site

from .conftest import make_run


@pytest.fixture
def served(tmp_path):
    """A server over `out`; `get(path, **headers)` gives (status, headers, body)."""
    make_run(tmp_path / "out")
    server = Server(site([tmp_path / "out"]))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()

    def get(path, method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        host = {"Host": headers.pop("Host", f"127.0.0.1:{server.server_port}")}
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers={**host, **more})
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    server.get, server.top = get, f"/{server.site.token}/"  # type: ignore[attr-defined]
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_runs_are_listed_and_shown(served, parsed, tmp_path):
    status, headers, body = served.get(served.top)
    assert status == 200 and headers["Cache-Control"] == "no-store"
    listed = parsed(body.decode())
    assert [r["name"] for r in listed["runs"]] == ["cat"] and listed["live"]
    assert "hf_secret" not in body.decode()
    place = served.top + listed["runs"][0]["href"]
    assert parsed(served.get(place)[2].decode())["name"] == "cat"
    data = json.loads(served.get(place + "data.json")[2])
    assert data["home"] == "../../"
    cells = [c for row in data["samples"]["cells"] for c in row if c]
    for cell in cells:
        status, headers, body = served.get(served.top + cell["src"].removeprefix("../../"))
        assert status == 200 and headers["Content-Type"] == ("image/png" if cell["kind"] == "image" else "video/mp4")  # fmt: skip
        assert len(body) > 100
    make_run(tmp_path / "out", "dog")  # a run that starts later gets its page
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        names = {r["name"] for r in json.loads(served.get(served.top + "data.json")[2])["runs"]}
        if names == {"cat", "dog"}:
            return
        time.sleep(0.1)
    raise AssertionError(names)


@pytest.mark.parametrize(
    "path",
    ["/", "/wrong/", "{top}../", "{top}..%2f..%2fetc/passwd", "{top}file/../../x", "{top}file/99",
     "{top}run/7/", "{top}run/0/config.toml", "{top}cat/config.toml", "{top}file/-1", "{top}run/0/../0/", "{top}run//0/"],
)  # fmt: skip
def test_nothing_else_is_answered(served, path):
    assert served.get(path.format(top=served.top))[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:1", ""])
def test_another_name_for_this_machine_is_refused(served, host):
    assert served.get(served.top, Host=host)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(served, method):
    assert served.get(served.top, method=method)[0] == 501


def test_a_link_out_of_the_folder_is_no_file_of_it(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    files = Files([tmp_path / "in"])
    inside, link = tmp_path / "in" / "a.png", tmp_path / "in" / "b.png"
    inside.write_bytes(b"x")
    link.symlink_to(tmp_path / "secret.png")
    assert (
        files.number(link) is None and files.number(tmp_path / "in" / ".." / "secret.png") is None
    )
    number = files.number(inside)
    assert number is not None and files.path(number) == inside.resolve()
    inside.unlink()
    inside.symlink_to(tmp_path / "secret.png")  # after its number was given out
    assert files.path(number) is None
    (tmp_path / "in" / "c.toml").write_text("x")
    assert files.number(tmp_path / "in" / "c.toml") is None


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [("bytes=0-3", 206, slice(0, 4)), ("bytes=-5", 206, slice(-5, None)), ("bytes=10-", 206, slice(10, None)),
     ("bytes=2-2", 206, slice(2, 3)), ("bytes=0-99999999", 200, slice(None)), ("bytes=99999999-", 416, slice(0, 0)),
     ("lines=1-2", 200, slice(None)), ("bytes=-", 200, slice(None))],
)  # fmt: skip
def test_a_player_may_ask_for_a_part(served, asked, status, part):
    data = json.loads(served.get(served.top + "run/0/data.json")[2])
    address = served.top + data["samples"]["cells"][0][0]["src"].removeprefix("../../")
    whole = served.get(address)[2]
    found, _, body = served.get(address, Range=asked)
    assert found == status and body == whole[part]


def test_news_come_when_a_file_changes(served, tmp_path):
    url = f"http://127.0.0.1:{served.server_port}{served.top}run/0/events"
    with urllib.request.urlopen(url, timeout=20) as stream:
        first = [stream.readline() for _ in range(3)][1]
        with (tmp_path / "out" / "cat" / "metrics.jsonl").open("a") as file:
            file.write("\n")
        os.utime(tmp_path / "out" / "cat" / "metrics.jsonl", ns=(1, 1))
        second = [stream.readline() for _ in range(3)][1]
    assert first.startswith(b"data: ") and first != second


def test_the_command_serves_and_ends_with_its_input(tmp_path):
    make_run(tmp_path / "out")
    words = [sys.executable, "-m", "musubi", "watch", str(tmp_path / "out"), "--until_input_ends"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    found = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", process.stdout.readline())
    assert found is not None
    with urllib.request.urlopen(found[0], timeout=20) as answer:
        assert answer.status == 200
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()
