"""What a killed process leaves is cleared away by the next one, and nothing else is."""

import os
import subprocess
import sys
import time

import pytest

from musubi.weights import temporary
from musubi.weights.write import save

HERE = temporary.Owner.this().host


@pytest.fixture(scope="module")
def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(folder, host, pid, age=0.0):
    path = folder / f".musubi-{host}-{pid}-1700000000-{'0' * 8}.tmp"
    path.write_bytes(b"half")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_a_dead_owner_s_files_go_at_once_and_a_living_one_s_stay(tmp_path, dead):
    gone = leave(tmp_path, HERE, dead)
    folder = tmp_path / gone.name.replace("0" * 8, "1" * 8)
    (folder / "deep").mkdir(parents=True)
    living = leave(tmp_path, HERE, os.getppid())
    own = leave(tmp_path, HERE, os.getpid())
    temporary.sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {living.name, own.name}


def test_of_other_computers_age_decides(tmp_path):
    fresh = leave(tmp_path, "0" * 8, 1)
    leave(tmp_path, "1" * 8, 1, age=2 * temporary.ABANDONED)
    temporary.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [fresh.name]


@pytest.mark.parametrize("name", ["x.tmp", ".musubi-x.tmp", ".musubi-failed-media.toy.json", "a"])
def test_files_of_other_names_stay(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / name, (1, 1))
    temporary.sweep(tmp_path)
    assert (tmp_path / name).exists()


def test_whoever_writes_into_a_folder_sweeps_it(tmp_path, dead):
    leave(tmp_path, HERE, dead)
    save(tmp_path / "a.safetensors", {})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_ending_at_once_leaves_none_of_ones_own(tmp_path):
    path = temporary.new_name(tmp_path)
    path.write_bytes(b"half")
    temporary.forget_all()
    assert not list(tmp_path.iterdir())


def test_a_link_is_deleted_and_not_what_it_leads_to(tmp_path, dead):
    home = tmp_path / "home"
    home.mkdir()
    (home / "kept").write_bytes(b"")
    link = tmp_path / f".musubi-{HERE}-{dead}-1-{'2' * 8}.tmp"
    try:
        link.symlink_to(home, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    temporary.sweep(tmp_path)
    assert (home / "kept").exists() and not link.is_symlink()
