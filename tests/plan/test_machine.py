"""What the computer has free, and that `--vram` stays below it where the command runs."""

import sys

import pytest

from musubi import registry
from musubi.errors import ConfigError
from musubi.estimate.step import PROCESS
from musubi.plan import fit, machine, sizes
from musubi.plan import run as plan_run
from musubi.plan.fit import policy_for
from musubi.plan.workload import Bucket
from musubi.plugin import Quiet

WAN = registry.find("wan")
GIB = 1 << 30
LONG = {"size": "1.3B", "vram": "12GiB", "network_dim": 32}
SIZE = [Bucket(832, 480, 81)]


def group(folder, most, now, cache, *, names=("memory.max", "memory.current", "inactive_file")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ((names[0], most), (names[1], now), ("memory.stat", f"{names[2]} {cache}")):
        (folder / name).write_text(f"{text}\n")


def test_available_memory_is_read(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       65536 kB\nMemFree: 1 kB\nMemAvailable:   4096 kB\n")
    assert machine._available(path) == 4 << 20
    assert machine._available(tmp_path / "none") is None


def test_every_group_around_the_process_counts(tmp_path):
    group(tmp_path / "user/job", 8 * GIB, 3 * GIB, GIB)
    group(tmp_path / "user", "max", 3 * GIB, 0)
    group(tmp_path, 4 * GIB, 3 * GIB, 0)
    names = tmp_path / "cgroup"
    names.write_text("0::/user/job\n")
    assert list(machine._cgroups(names, tmp_path)) == [6 * GIB, GIB]


def test_groups_of_the_first_version_count(tmp_path):
    old = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    group(tmp_path / "memory", 2 * GIB, GIB, 512, names=old)
    names = tmp_path / "cgroup"
    names.write_text("5:cpu:/\n4:memory:/docker/of/the/host\n")
    assert list(machine._cgroups(names, tmp_path)) == [GIB + 512]
    group(tmp_path / "memory", 9223372036854771712, GIB, 0, names=old)
    assert list(machine._cgroups(names, tmp_path)) == []


def test_this_computer_has_some():
    if sys.platform in ("linux", "win32"):
        assert (machine.free_host() or 0) > 0


def test_processes_share_and_what_cannot_be_chosen_is_no_limit(monkeypatch):
    monkeypatch.setattr(machine, "free_host", lambda: 100 * GIB)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert machine.host_room() == 94 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert machine.host_room() == 94 * GIB // 4
    monkeypatch.setattr(machine, "free_host", lambda: GIB)
    assert machine.host_room() == PROCESS
    monkeypatch.setattr(machine, "free_host", lambda: None)
    assert machine.host_room() is None


@pytest.fixture
def free(monkeypatch):
    """`free(bytes)`: what this computer may use of its host memory."""

    def make(size):
        for module in (fit, plan_run):
            monkeypatch.setattr(module, "host_room", lambda: size)

    return make


def chosen(config, **more):
    report = Quiet()
    policy = policy_for(config(**LONG, **more), WAN, trains=True, buckets=SIZE, report=report)
    return policy, report.notes[-1]


def test_settings_that_a_command_chooses_fit_what_the_host_has(config, free):
    free(None)
    most, said = chosen(config)
    assert most.offload_activations and "Host memory decided" not in said
    free(16 * GIB)
    less, said = chosen(config)
    assert not less.offload_activations
    assert "Host memory decided: 16.0 GiB can be used here; --ram gives another amount." in said
    assert chosen(config, ram="512GiB")[0] == most  # what was given counts
    given, said = chosen(config, ram="16GiB")
    assert given == less
    assert "with more than --ram 16GiB they would be faster" in said


def test_what_the_user_decided_stays_whatever_the_host_has(config, free):
    free(16 * GIB)
    with pytest.raises(ConfigError, match=r"what this computer has free allows 16\.0 GiB") as told:
        chosen(config, gradient_checkpointing_cpu_offload=True, recompute="none")
    assert "12.0 GiB of device memory would do for 832x480, 81 frames, with" in told.value.what
    assert "--ram" in told.value.fix


def test_a_plan_for_another_computer_takes_no_limit_and_says_so(plan, free):
    free(4 * GIB)
    asked = {**LONG, "width": 832, "height": 480, "frames": 81}
    figures, report = plan(**asked)
    assert figures["policy"]["offload_activations"]
    assert any("no limit is assumed. --ram SIZE sets one" in note for note in report.notes)
    _, report = plan(**asked, ram="16GiB")
    assert any("and --ram allows 16GiB. Host memory decided" in note for note in report.notes)


def test_a_plan_for_what_is_free_here_stays_below_it(plan, free, monkeypatch):
    free(16 * GIB)
    for module in (fit, plan_run, sizes):
        monkeypatch.setattr(module, "device_bytes", lambda text: 12 * GIB)
    asked = {**LONG, "width": 832, "height": 480, "frames": 81, "vram": "auto"}
    figures, report = plan(**asked)
    assert not figures["policy"]["offload_activations"]
    assert any("16.0 GiB can be used here. Host memory decided" in note for note in report.notes)
