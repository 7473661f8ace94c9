"""Fetching from a hub: a local server that answers as the hub does, and everything it may refuse."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from musubi import registry
from musubi.config.models import FetchConfig
from musubi.config.task import choose_task
from musubi.errors import ConfigError, RunError
from musubi.models import download, fetch
from musubi.plugin import Quiet

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`files`: address → content; `gated`, `cut`, `lies` change how it answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.cut: dict[str, int] = {}
        self.lies: set[str] = set()
        self.asked: list[tuple[str, str, str]] = []


class Answer(BaseHTTPRequestHandler):
    server: Hub  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        repo, _, rest = path.partition("/resolve/")
        name = rest.partition("/")[2]
        key = f"{repo}/{name}"
        self.server.asked.append((self.command, key, self.headers.get("Range", "")))
        if repo in self.server.gated:
            self._end(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"})
        elif not any(k.startswith(f"{repo}/") for k in self.server.files):
            self._end(404, {"X-Error-Code": "RepoNotFound"})
        elif key not in self.server.files:
            self._end(404, {"X-Error-Code": "EntryNotFound"})
        else:
            self._file(key)

    do_HEAD = do_GET  # noqa: N815

    def _file(self, key: str) -> None:
        body = self.server.files[key]
        etag = hashlib.sha256(body).hexdigest()
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if key in self.server.lies:
            body = bytes(len(body))
        part = body[start:]
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(body)),
            "Accept-Ranges": "bytes",
            "Content-Length": str(len(part)),
        }
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        cut = self.server.cut.pop(key, None) if self.command == "GET" else None
        self._end(206 if asked else 200, headers, part, cut)

    def _end(self, code: int, headers: dict[str, str], body: bytes = b"", cut: int | None = None) -> None:  # fmt: skip
        self.send_response(code)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


WAN = registry.find("wan")
CHOICE = choose_task(WAN, "t2v-1.3B")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for number, one in enumerate(fetch.choose(WAN, CHOICE, None, ())):
        server.files[f"{one.repo}/{one.file}"] = bytes([number]) * (300_000 + number)
    tokenizer = WAN.component("t5").tokenizer
    assert tokenizer is not None
    start = f"{tokenizer.subfolder}/" if tokenizer.subfolder else ""
    server.files[f"{tokenizer.repo}/{start}tokenizer.json"] = b"{}"
    yield server
    server.shutdown()
    server.server_close()


def go(folder: Path, **more: object) -> Quiet:
    said = Quiet()
    fetch.run(FetchConfig(name=["wan"], task="t2v-1.3B", to=str(folder), **more), said)
    return said


def test_the_files_of_a_task_come_whole_and_stay(hub, tmp_path):
    said = go(tmp_path / "m")
    for one in fetch.choose(WAN, CHOICE, None, ()):
        path = tmp_path / "m" / "wan" / one.component / Path(one.file).name
        assert path.read_bytes() == hub.files[f"{one.repo}/{one.file}"]
    assert (tmp_path / "m" / "wan" / "t5_tokenizer" / "tokenizer.json").read_bytes() == b"{}"
    assert any("Apache-2.0" in note and "0.30 MB" in note for note in said.notes)
    assert not (tmp_path / "m" / fetch.STAGE).exists()
    before = len([a for a in hub.asked if a[0] == "GET"])
    assert sum("is there" in note for note in go(tmp_path / "m").notes) == 4
    assert len([a for a in hub.asked if a[0] == "GET"]) == before  # nothing is fetched twice


def test_a_dry_run_fetches_nothing(hub, tmp_path):
    said = go(tmp_path / "m", dry_run=True)
    assert "would be fetched" in said.notes[-1] and not (tmp_path / "m").exists()
    assert not [a for a in hub.asked if a[0] == "GET"]


def test_a_broken_connection_goes_on_where_it_was(hub, tmp_path):
    one = fetch.choose(WAN, CHOICE, ["vae"], ())[0]
    key = f"{one.repo}/{one.file}"
    hub.cut[key] = 100_000
    go(tmp_path / "m", only=["vae"])
    path = tmp_path / "m" / "wan" / "vae" / Path(one.file).name
    assert path.read_bytes() == hub.files[key]
    assert [a[2] for a in hub.asked if a[:2] == ("GET", key)] == ["bytes=0-", "bytes=100000-"]


def test_another_process_goes_on_too(hub, tmp_path, monkeypatch):
    one = fetch.choose(WAN, CHOICE, ["vae"], ())[0]
    key = f"{one.repo}/{one.file}"
    hub.cut[key] = 100_000
    with monkeypatch.context() as patch, pytest.raises(RunError, match="broke at 100000"):
        patch.setattr(download, "ATTEMPTS", 0)  # as if the power went
        go(tmp_path / "m", only=["vae"])
    assert next((tmp_path / "m" / fetch.STAGE).glob("*.part")).stat().st_size == 100_000
    go(tmp_path / "m", only=["vae"])
    assert (tmp_path / "m/wan/vae" / Path(one.file).name).read_bytes() == hub.files[key]
    assert [a[2] for a in hub.asked if a[:2] == ("GET", key)][-1] == "bytes=100000-"


def test_a_file_of_another_hash_is_not_kept(hub, tmp_path):
    one = fetch.choose(WAN, CHOICE, ["vae"], ())[0]
    hub.lies.add(f"{one.repo}/{one.file}")
    with pytest.raises(RunError, match="hash"):
        go(tmp_path / "m", only=["vae"])
    assert not list((tmp_path / "m").rglob("*.pth")) + list((tmp_path / "m").rglob("*.safetensors"))


def test_what_the_hub_refuses_is_explained(hub, tmp_path):
    one = fetch.choose(WAN, CHOICE, ["dit"], ())[0]
    hub.gated.add(one.repo)
    with pytest.raises(RunError, match="gated") as gated:
        go(tmp_path / "m", only=["dit"])
    assert gated.value.fix is not None and "hf auth login" in gated.value.fix
    hub.gated.clear()
    del hub.files[f"{one.repo}/{one.file}"]
    hub.files[f"{one.repo}/other"] = b""
    with pytest.raises(RunError, match="has no file"):
        go(tmp_path / "m", only=["dit"])
    hub.files.clear()
    with pytest.raises(RunError, match="no repository"):
        go(tmp_path / "m", only=["dit"])


def test_a_disk_without_room_is_said_before(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda place: type("U", (), {"free": 1000})())
    with pytest.raises(RunError, match="free"):
        go(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_what_nobody_publishes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no component"):
        fetch.choose(WAN, CHOICE, ["clip"], ())
    with pytest.raises(ConfigError, match="no task"):
        fetch.run(FetchConfig(name=["wan"], task="t2v-99B"), Quiet())
    with pytest.raises(ConfigError, match="no architecture"):
        fetch.run(FetchConfig(name=["wam"]), Quiet())


def test_a_word_chooses_among_published_files():
    big = choose_task(WAN, "t2v-14B")
    assert "fp8_scaled" in fetch.choose(WAN, big, ["dit"], ["fp8_scaled"])[0].file
    assert "fp8" not in fetch.choose(WAN, big, ["dit"], ())[0].file


@pytest.mark.parametrize("name", registry.names())
def test_every_variant_can_be_fetched(name):
    architecture = registry.find(name)
    for variant in architecture.variants:
        task = architecture.task(variant.task)
        choice = choose_task(architecture, variant.name)
        needed = {*task.denoisers, *task.components}
        chosen = fetch.choose(architecture, choice, None, ())
        assert {p.component for p in chosen} == needed
        for one in chosen:  # of a checkpoint in shards, every shard
            _, mark, count = Path(one.file).stem.partition("-of-")
            if mark:
                alike = [p for p in chosen if (p.component, p.repo) == (one.component, one.repo)]
                assert len(alike) == int(count)


@pytest.mark.parametrize("name", registry.names())
def test_files_of_one_name_go_into_folders_of_their_own(name):
    architecture = registry.find(name)
    targets = [fetch.place(p, architecture) for p in architecture.publications]
    assert len(set(targets)) == len(targets)


@pytest.mark.parametrize("name", registry.names())
def test_sizes_are_those_of_the_numbers(name):
    """What is published of a denoiser takes two bytes a number, one or four by what its name says."""
    architecture = registry.find(name)
    for variant in architecture.variants:
        with torch.device("meta"):
            network = architecture.dit.build(**variant.numbers)
        numbers = sum(p.numel() for p in network.parameters()) / 1e9
        sets: dict[tuple[str, str], float] = {}
        for one in architecture.publications:
            if variant.name in one.variants and architecture.component(one.component).role == "dit":
                key = (one.repo, one.file.partition("-0000")[0])
                sets[key] = sets.get(key, 0) + one.size
        assert sets, f"no file is published for {variant.name}"
        for (repo, file), size in sets.items():
            bytes_a_number = min((1, 2, 4), key=lambda n, s=size: abs(s - n * numbers))
            spare = 0.04 if "fp8" in file else 0.01  # some layers of 8-bit files keep 16 bits
            assert size == pytest.approx(bytes_a_number * numbers, rel=spare), (repo, file)
            assert (bytes_a_number == 1) == ("fp8" in file), (repo, file)
