"""Help, completion, failures: what surrounds every command."""

import os
import subprocess
import sys

import pytest

from musubi.errors import RunError, StoppedError
from musubi.estimate import cards


def test_help_lists_every_command(musubi_main):
    for words in ([], ["--help"], ["-h"]):
        code, out, _ = musubi_main(*words)
        assert code == 0
        assert "models show NAME" in out
        assert "lora info" in out


def test_help_of_a_group(musubi_main):
    for words in (["lora"], ["lora", "--help"]):
        code, out, _ = musubi_main(*words)
        assert code == 0
        assert "lora info" in out
        assert "train" not in out


def test_help_of_a_command_shows_the_architectures_options(musubi_main):
    _, out, _ = musubi_main("train", "--help")
    assert "--learning_rate FLOAT" in out
    assert "[default: 2e-06]" in out
    assert "--metadata, --no_metadata" in out
    assert "--network_args KEY=VALUE ..." in out
    assert "[also --net_args]" in out
    assert "--t5" not in out
    assert "--arch wan" in out
    _, out, _ = musubi_main("train", "--arch", "wan", "--help")
    assert "--t5 PATH" in out
    assert "--vae_cache_cpu" in out
    assert "Add --arch" not in out


def test_help_answers_in_spite_of_other_words(musubi_main):
    code, out, _ = musubi_main("train", "--config", "missing", "--arch", "none", "--qqq", "--help")
    assert code == 0
    assert "--learning_rate" in out


def test_help_of_bare_words(musubi_main):
    _, out, _ = musubi_main("lora", "info", "--help")
    assert out.startswith("Usage: musubi lora info FILE... [OPTIONS]")
    assert "--arch" not in out


def test_version(musubi_main):
    import musubi

    assert musubi_main("--version")[1] == f"musubi {musubi.__version__}\n"


def _fails(musubi_main, error: BaseException, *words: str):
    def run(config, architecture, report):
        raise error

    musubi_main.module.run = run
    return musubi_main("train", "--arch", "wan", *words)


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


FAILURES = [
    (RunError("The disk is full.", fix="Make room."), 2, "error: The disk is full.\nMake room.\n"),
    (StoppedError("Stopped.", fix="Go on with --resume auto."), 130, "Stopped.\nGo on"),
    (KeyboardInterrupt(), 130, "Stopped.\nGo on with: musubi train --arch wan\n"),
    (
        ValueError("two\nlines"),
        1,
        "error: unexpected ValueError: two lines.\nRun again with --debug",
    ),
    (AssertionError(), 1, "error: unexpected AssertionError.\nRun again with --debug"),
    (
        OutOfMemoryError("CUDA out of memory. Tried"),
        1,
        "error: The GPU's memory is full: CUDA out of",
    ),
    (MemoryError(), 1, "error: The computer's memory is full: MemoryError."),
    (
        ModuleNotFoundError("No module", name="av.video"),
        1,
        "error: The package 'av' is not installed.",
    ),
]


@pytest.mark.parametrize(("error", "code", "said"), FAILURES, ids=lambda v: type(v).__name__)
def test_a_failure_is_one_sentence_and_an_exit_code(musubi_main, error, code, said):
    got, out, err = _fails(musubi_main, error)
    assert (got, out) == (code, "")
    assert err.startswith(said)
    assert "Traceback" not in err


def test_a_failure_says_which_of_several_processes_failed(musubi_main, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    _, _, err = _fails(musubi_main, RunError("The disk is full."))
    assert err == "error (process 1): The disk is full.\n"


@pytest.mark.parametrize("where", [0, 3])
def test_debug_shows_where(musubi_main, where):
    def run(config, architecture, report):
        raise ValueError("deep inside")

    musubi_main.module.run = run
    words = ["train", "--arch", "wan"]
    words.insert(where, "--debug")
    code, _, err = musubi_main(*words)
    assert code == 1
    assert "Traceback" in err
    assert err.rstrip().endswith("error: unexpected ValueError: deep inside.")


def _complete(shell: str, line: str) -> str:
    words = line.split(" ")
    env = os.environ | {
        "_MUSUBI_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": words[-1],
    }
    if shell != "bash":
        del env["COMP_WORDS"]
    code = "import musubi.cli; musubi.cli.main()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    return ran.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_knows_the_architectures_flags(shell):
    found = _complete(shell, "musubi train --arch wan --vae_c")
    assert "--vae_cache_cpu" in found
    assert "--vae_dtype" not in found


def test_completion_of_values_commands_and_names():
    assert _complete("bash", "musubi train --arch wan --task t2v-1").split() == [
        "t2v-1.3B",
        "t2v-14B",
        "t2v-1.3B-FC",
        "t2v-14B-FC",
    ]
    assert "wan" in _complete("bash", "musubi train --arch ").split()
    assert _complete("bash", "musubi mod").split() == ["models"]
    assert _complete("bash", "musubi train --timestep_sampling log").split() == ["logsnr"]
    assert _complete("bash", "musubi train --config 'open --learning_r").split() in (
        [], ["--learning_rate"],
    )  # fmt: skip


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_offers_cards_as_one_word_each(shell):
    found = _complete(shell, "musubi plan --arch wan --card RTX-40")
    assert "RTX-4090" in found and "RTX-4070-Ti" in found and "RTX-3090" not in found


def test_a_card_that_is_offered_is_the_one_that_is_planned_for():
    for card in cards.CARDS:
        assert cards.named(card.name.replace(" ", "-")) is card


@pytest.mark.parametrize("command", [["-m", "musubi"], ["-m", "musubi", "models"]])
def test_it_runs_as_a_module_in_a_narrow_encoding(command):
    env = os.environ | {"PYTHONIOENCODING": "cp1252:strict", "PYTHONUTF8": "0"}
    ran = subprocess.run([sys.executable, *command], capture_output=True, env=env)
    assert ran.returncode == 0, ran.stderr
    assert b"wan" in ran.stdout or b"train" in ran.stdout


@pytest.mark.parametrize("words", [["--help"], ["models"], ["train", "--help"]])
def test_a_closed_pipe_is_not_an_error(words):
    code = f"import time, musubi.cli; time.sleep(0.2); musubi.cli.main({words!r})"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ran:
        ran.stdout.close()
        assert ran.stderr.read() == b""


def test_help_of_train_is_a_screen_and_all_is_everything(capfd):
    from musubi.cli import main

    def lines(*words):
        main(words)
        return capfd.readouterr().out.splitlines()

    short = lines("train", "--arch", "wan", "--help")
    whole = lines("train", "--arch", "wan", "--help", "all")
    assert 2 * len(short) < len(whole)
    assert any("--dit PATH" in line for line in short)
    assert any("--help all" in line for line in short[-2:])
    assert any("--max_grad_norm" in line for line in whole)
    assert not any("--max_grad_norm" in line for line in short)
