"""A command of our own, so that the parser is tested apart from the real commands' options."""

import sys
import types
from importlib import import_module
from typing import Literal

import pytest

from musubi.config import commands
from musubi.config.options import Options, Retired, option
from musubi.plugin import Lazy


class Toy(Options):
    """Options of every shape."""

    dataset_config: str | None = option(None, "The dataset file.", metavar="PATH")
    learning_rate: float = option(2e-6, "Learning rate.", group="Optimizer", gt=0)
    sdpa: bool = option(False, "Plain attention.")
    metadata: bool = option(True, "Write metadata.")
    mode: Literal["sigma", "shift"] = option("sigma", "A choice.")
    network_args: list[str] = option([], "Arguments.", metavar="KEY=VALUE", aliases=("net_args",))
    multiplier: tuple[float, ...] = option((), "Numbers.")
    video_size: tuple[int, int] = option((256, 256), "Height and width.", metavar="H W")
    prompt: str | None = option(None, "Text.")
    task: str | None = option(None, "The task.")


class ToyFiles(Options):
    """A command with bare words."""

    files: list[str] = option(..., "LoRA files.", metavar="FILE")


@pytest.fixture
def toy(monkeypatch):
    """Two commands, `train` and `lora info`; returns what they were called with."""
    module = types.ModuleType("musubi_toy_command")
    calls = []
    module.Toy, module.ToyFiles = Toy, ToyFiles
    module.RETIRED = (
        Retired("network_module", "it follows from --arch."),
        Retired("old_flag", "nothing to choose any more.", 0),
        Retired("old_list", "nothing to list any more.", -1),
    )
    module.run = lambda config, architecture, report: calls.append((config, architecture))
    module.run_files = lambda config, report: calls.append((config, None))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    table = (
        commands.Command(
            words=("train",),
            help="Train.",
            model=Lazy("musubi_toy_command:Toy"),
            run=Lazy("musubi_toy_command:run"),
            place="train",
        ),
        commands.Command(
            words=("lora", "info"),
            help="Say what a file holds.",
            model=Lazy("musubi_toy_command:ToyFiles"),
            run=Lazy("musubi_toy_command:run_files"),
            place=None,
            positional="files",
        ),
    )
    # Imported before any is replaced: each copies the real table when it is first imported.
    places = [import_module(f"musubi.{n}") for n in ("config.commands", "cli.app", "cli.help")]
    for place in places:
        monkeypatch.setattr(place, "COMMANDS", table)
    module.calls = calls
    return module


@pytest.fixture
def musubi_main(toy, capsys, monkeypatch):
    """Run a command line; gives (exit code, stdout, stderr) and keeps the calls in `.calls`."""
    import musubi.cli.report

    def run(*words: str):
        musubi.cli.report.terminal.cache_clear()
        code = 0
        try:
            musubi.cli.main(list(words))
        except SystemExit as stop:
            code = stop.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    run.calls = toy.calls
    run.module = toy
    yield run
    musubi.cli.report.terminal.cache_clear()
