"""What this computer can do: every check is really run, and a failure is a finding."""

import getpass
import json
from pathlib import Path

import pytest

from musubi.config.doctor import DoctorConfig
from musubi.doctor import checks, run
from musubi.doctor.checks import Check
from musubi.errors import ConfigError, RunError
from musubi.nn import attention
from musubi.plugin import Quiet


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return list(checks.all_checks(tmp_path_factory.mktemp("disk")))


def test_everything_is_looked_at(found):
    names = [check.name for check in found]
    assert {"python", "torch", "card", "bfloat16", "disk", "video", "host memory"} <= set(names)
    assert {f"attention {name}" for name in attention.BACKENDS} <= set(names)
    assert len(names) == len(set(names))
    by_name = {check.name: check for check in found}
    for name in ("python", "torch", "attention sdpa", "video", "transformers"):
        assert by_name[name].state == "good", by_name[name]


def test_a_wrong_kernel_is_noticed(monkeypatch):
    monkeypatch.setitem(attention._LOADERS, "sdpa", lambda: lambda q, k, v: v * 0)
    assert checks.attention_backend("sdpa").state == "bad"


def test_a_check_that_fails_is_a_finding():
    def fails():
        raise OSError("no such device\nand more")

    check = checks._tried("thing", fails)
    assert check.state == "bad" and "no such device" in check.found and "more" not in check.found


def test_it_is_said_as_json_and_as_a_report_without_names(tmp_path, monkeypatch):
    secret = f"fails: {Path.home()}/x {getpass.getuser()}-key {Path.cwd()!s}"
    monkeypatch.setattr(
        run, "all_checks", lambda disk: iter([Check("one", "poor", secret, "do it")])
    )
    said = Quiet()
    path = tmp_path / "report.txt"
    run.run(DoctorConfig(json_output=True, report=str(path), disk=str(tmp_path)), said)
    (check,) = json.loads(said.notes[-1])["checks"]
    assert check["fix"] == "do it"
    for text in (check["found"], path.read_text("utf-8")):
        assert str(Path.home()) not in text or str(Path.home()) == "/"
        assert str(Path.cwd()) not in text


def test_what_will_fail_ends_the_command_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(
        run, "all_checks", lambda disk: iter([Check("torch", "bad", "old", "update")])
    )
    said = Quiet()
    with pytest.raises(RunError, match="torch"):
        run.run(DoctorConfig(disk=str(tmp_path)), said)
    assert any("update" in note for note in said.notes)


def test_what_cannot_be_written_or_measured_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--disk"):
        run.run(DoctorConfig(disk=str(tmp_path / "none")), Quiet())
    monkeypatch.setattr(run, "all_checks", lambda disk: iter([]))
    with pytest.raises(RunError, match="cannot be written"):
        run.run(DoctorConfig(disk=str(tmp_path), report=str(tmp_path / "no" / "x")), Quiet())
