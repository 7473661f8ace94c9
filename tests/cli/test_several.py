"""Several runs in one file: `[[run]]`."""

import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from musubi.cli import main
from musubi.config.resolve import read_file
from musubi.errors import ConfigError
from tests.pipelines.test_losses_and_data import files, offline, same, world  # noqa: F401 - fixtures


@pytest.fixture
def toml(tmp_path):
    """Writes a file of runs of a tiny Wan; `more` is for all of them."""

    def write(runs, **more):
        shared = {
            "arch": "wan",
            "task": "t2v-1.3B",
            "dataset_config": str(tmp_path / "data.toml"),
            "output_dir": str(tmp_path / "out"),
            "mixed_precision": "no",
            "dit_dtype": "float32",
            "seed": 5,
            "max_train_steps": 2,
            "max_data_loader_n_workers": 0,
            "network_dim": 2,
            "log_with": "none",
            **more,
        }
        lines = [f"{k} = {v!r}" for k, v in shared.items()]
        for table in runs:
            lines += ["[[run]]", *(f"{k} = {v!r}" for k, v in table.items())]
        path = tmp_path / "runs.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def cached(world):  # noqa: F811
    world.write(("new", ""))
    world.cache()
    return world


def run(*words):
    """The exit code of a command in this process; the runs of a file have processes of their own."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code or 0


def test_a_failing_run_does_not_stop_the_rest_and_the_end_lists_them(cached, toml, tmp_path, capfd):
    runs = [
        {"output_name": "broken", "dit": "absent.safetensors"},
        {"output_name": "fine", "network_dim": 4},
    ]
    path = toml(runs, dit=str(cached.places["dit"]))
    assert run("train", "--config", path) == 2
    out, err = capfd.readouterr()
    said = " ".join((out + err).split())
    assert "1 of 2 runs failed: broken." in said and "absent.safetensors" in said
    assert said.count("finished") == 1 and said.count("failed, exit code 2") == 1
    fine = load_file(tmp_path / "out" / "fine.safetensors")
    assert {min(t.shape) for t in fine.values() if t.ndim == 2} == {4}
    alone = tmp_path / "alone"
    assert run("train", "--config", path, "--run", "fine", "--output_dir", alone) == 0
    assert same(load_file(alone / "fine.safetensors"), fine)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent so there")
def test_a_signal_stops_the_run_under_way_which_saves_its_state(cached, toml, tmp_path):
    runs = [{"output_name": "one"}, {"output_name": "two"}]
    path = toml(runs, dit=str(cached.places["dit"]), max_train_steps=100_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "musubi", "train", "--config", path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
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
def test_one_name_for_all_and_other_commands_are_refused(toml, capsys, words, sentence):
    path = toml([{"output_name": "a"}, {"output_name": "b"}])
    assert run(words[0], "--config", path, *words[1:]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
