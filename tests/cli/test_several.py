"""Several runs in one file: `[[run]]`."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from musubi.config.resolve import read_file
from musubi.errors import ConfigError
from tests.test_toy import cached, files, registered, run, world  # noqa: F401 - fixtures


@pytest.fixture(scope="module")
def toml(world, cached):  # noqa: F811
    folder, models = world

    def write(place, runs, **shared):
        shared = {
            "arch": "toy",
            "task": "all",
            "dataset_config": str(folder / "data.toml"),
            "dit": models["dit"],
            "dit_high_noise": models["dit_high_noise"],
            "output_dir": str(place / "out"),
            "mixed_precision": "no",
            "seed": 5,
            "max_train_steps": 2,
            "network_dim": 2,
            "log_with": "none",
            **shared,
        }
        lines = [f"{k} = {v!r}" for k, v in shared.items()]
        for table in runs:
            lines += ["[[run]]", *(f"{k} = {v!r}" for k, v in table.items())]
        path = place / "runs.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def test_a_failing_run_does_not_stop_the_rest_and_the_end_lists_them(toml, run, tmp_path):  # noqa: F811
    runs = [
        {"output_name": "small", "learning_rate": 1e-3},
        {"output_name": "broken", "dit": "absent.safetensors"},
        {"output_name": "odd", "learning_rate": -1.0},
        {"output_name": "large", "network_dim": 4},
    ]
    done = run("train", "--config", toml(tmp_path, runs), ok=False)
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert "2 of 4 runs failed: broken, odd." in said and "absent.safetensors" in said
    assert said.count("finished") == 2 and said.count("failed, exit code 2") == 2
    small, large = (load_file(tmp_path / "out" / f"{n}.safetensors") for n in ("small", "large"))
    assert {min(t.shape) for t in small.values() if t.ndim == 2} == {2}
    assert {min(t.shape) for t in large.values() if t.ndim == 2} == {4}
    alone = run("train", "--config", tmp_path / "runs.toml", "--run", "small",
                "--output_name", "alone", "--output_dir", tmp_path / "alone")  # fmt: skip
    assert alone.returncode == 0
    again = load_file(tmp_path / "alone" / "alone.safetensors")
    assert all(torch.equal(again[n], small[n]) for n in small)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent so there")
def test_a_signal_stops_the_run_under_way_which_saves_its_state(toml, registered, tmp_path):  # noqa: F811
    runs = [{"output_name": "one"}, {"output_name": "two"}]
    path = toml(tmp_path, runs, max_train_steps=100_000)
    environment = {**os.environ, "PYTHONPATH": str(registered), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "musubi", "train", "--config", str(path)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    metrics = tmp_path / "out" / "one" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == 143, said
    assert list((tmp_path / "out").glob("one-step*-state"))
    assert not (tmp_path / "out" / "two").exists()
    assert "0 of 2 runs are finished" in said and "not begun" in said


def test_a_file_of_runs_is_read_one_run_over_what_all_share(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        "seed = 1\n[learning]\nlearning_rate = 1e-4\n"
        "[[run]]\noutput_name = 'a'\n[[run]]\noutput_name = 'b'\nlearning_rate = 2e-4\n"
    )
    file = read_file(path, "b")
    assert file.runs == ("a", "b")
    assert file.values == {"seed": 1, "learning_rate": 2e-4, "output_name": "b"}
    with pytest.raises(ConfigError, match="has no run 'c'"):
        read_file(path, "c")
    for tables, sentence in (
        ("[[run]]\nseed = 1\n", "Run 1 of .* has no output_name"),
        ("[[run]]\noutput_name = 'a'\n" * 2, "two runs with the output_name 'a'"),
    ):
        path.write_text(tables)
        with pytest.raises(ConfigError, match=sentence):
            read_file(path)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train", "--output_name", "x"), "names one run"),
        (("plan",), "looks at one"),
        (("generate", "--prompt", "x"), "looks at one"),
    ],
)
def test_one_name_for_all_and_other_commands_are_refused(toml, run, tmp_path, words, sentence):  # noqa: F811
    path = toml(tmp_path, [{"output_name": "a"}, {"output_name": "b"}])
    done = run(words[0], "--config", path, *words[1:], ok=False)
    assert done.returncode == 2 and sentence in " ".join(done.stderr.split()), done.stderr
