"""Uploads and downloads against a hub that is a folder."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from musubi.config.train import TrainConfig
from musubi.errors import ConfigError
from musubi.plugin import Quiet
from musubi.train import upload


class Api:
    def __init__(self, token: str | None = None) -> None:
        self.sent: list[tuple[str, str]] = []
        self.made: dict[str, Any] = {}

    def create_repo(self, repo: str | None, **more: Any) -> None:
        if repo == "no/way":
            raise RuntimeError("401")
        self.made = {"repo": repo, **more}

    def upload_file(self, *, path_or_fileobj: str, path_in_repo: str, **more: Any) -> Any:
        return self._send(path_or_fileobj, path_in_repo, more)

    def upload_folder(self, *, folder_path: str, path_in_repo: str, **more: Any) -> Any:
        return self._send(folder_path, path_in_repo, more)

    def _send(self, path: str, there: str, more: dict[str, Any]) -> Any:
        error = RuntimeError("the line is cut") if "bad" in path else None
        if not more["run_as_future"] and error:
            raise error
        self.sent.append((Path(path).name, there))
        future: Future[None] = Future()
        if error:
            future.set_exception(error)
        else:
            future.set_result(None)
        return future


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(HfApi=Api)
    monkeypatch.setattr(upload, "_hub", lambda: made)
    return made


def options(**more: Any) -> TrainConfig:
    return TrainConfig(huggingface_repo_id="me/cat", save_state=True, **more)


@pytest.mark.parametrize("later", [False, True])
def test_files_go_up_and_failures_are_told(hub, tmp_path: Path, later: bool) -> None:
    report = Quiet()
    config = options(
        huggingface_path_in_repo="runs/1/", async_upload=later, save_state_to_huggingface=True
    )
    up = upload.Upload(config, report)
    assert up._api.made["private"] is True
    (tmp_path / "cat-state").mkdir()
    up.checkpoint(tmp_path / "cat.safetensors")
    up.state(tmp_path / "cat-state")
    up.checkpoint(tmp_path / "bad.safetensors")
    up.finish()
    assert up._api.sent[:2] == [
        ("cat.safetensors", "runs/1/cat.safetensors"),
        ("cat-state", "runs/1/cat-state"),
    ]
    assert len(report.warnings) == 1 and "the line is cut" in report.warnings[0]


def test_states_stay_here_unless_asked_for(hub, tmp_path: Path) -> None:
    up = upload.Upload(options(), Quiet())
    up.state(tmp_path)
    assert up._api.sent == []


def test_a_repository_that_refuses_stops_the_run_before_it_starts(hub) -> None:
    with pytest.raises(ConfigError, match="no/way cannot be used: 401"):
        upload.Upload(TrainConfig(huggingface_repo_id="no/way"), Quiet())


def test_a_state_comes_down(hub, tmp_path: Path) -> None:
    asked: list[Any] = []

    def snapshot_download(repo: str, **more: Any) -> str:
        asked.append((repo, more))
        return str(tmp_path)

    hub.snapshot_download = snapshot_download
    assert upload.download_state("me/cat/a/cat-state:main:model") == tmp_path / "a" / "cat-state"
    repo, more = asked[0]
    assert repo == "me/cat" and more["revision"] == "main"
    assert more["allow_patterns"] == ["a/cat-state/*"]
    with pytest.raises(ConfigError, match="names no state on the hub"):
        upload.download_state("me/cat")
