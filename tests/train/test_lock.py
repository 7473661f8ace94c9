"""One run a name: the second is refused while the first lives, and only then."""

import json
import os
import subprocess
import sys
import time

import pytest

from musubi.errors import ConfigError
from musubi.train import lock
from musubi.train.checkpoints import Names
from musubi.weights.temporary import Owner


@pytest.fixture
def names(tmp_path):
    found = Names(tmp_path, "cat")
    found.own.mkdir()
    return found


def hold(names, pid, **more):
    """As if another process held the lock."""
    facts = {"pid": pid, "host": Owner.this().host, "computer": "here", **more}
    (names.own / ".lock").write_text(json.dumps(facts), encoding="utf-8")


def test_it_is_gone_afterwards_and_nothing_else_is_left(names):
    with lock.Lock(names) as held:
        assert held.path.is_file()
    assert not list(names.own.iterdir())


def test_a_living_run_is_named(names):
    hold(names, os.getppid())
    with pytest.raises(ConfigError, match=f"Process {os.getppid()} on here trains 'cat'") as caught:
        lock.Lock(names).__enter__()
    assert "--output_name" in caught.value.fix
    assert (names.own / ".lock").is_file()


def test_the_lock_of_a_dead_run_is_taken_over(names):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    hold(names, ended.pid)
    with lock.Lock(names) as held:
        assert json.loads(held.path.read_bytes())["pid"] == os.getpid()
    assert not list(names.own.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when a process was started")
def test_a_number_that_another_process_has_by_now_does_not_count(names):
    hold(names, os.getppid(), started=1)
    with lock.Lock(names):
        pass


@pytest.mark.parametrize(("silent", "taken"), [(10, False), (3600, True)])
def test_of_another_computer_its_signs_of_life_count(names, silent, taken):
    hold(names, 1, host="00000000", computer="elsewhere")
    then = time.time() - silent
    os.utime(names.own / ".lock", (then, then))
    if taken:
        with lock.Lock(names):
            pass
        return
    with pytest.raises(ConfigError, match="on elsewhere"):
        lock.Lock(names).__enter__()


def test_a_damaged_lock_is_taken_over_once_it_is_old(names):
    path = names.own / ".lock"
    path.write_bytes(b"\xff{")
    with pytest.raises(ConfigError, match="Another process"):
        lock.Lock(names).__enter__()
    os.utime(path, (1, 1))
    with lock.Lock(names):
        pass
