"""The pages are true: links lead somewhere, commands parse, the reference is current, examples load."""

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from musubi import registry
from musubi.cli.line import CommandLine
from musubi.config.commands import COMMANDS, typed
from musubi.config.dataset import read_dataset_config
from musubi.config.fields import flags
from musubi.config.prompts import Kind, grammar
from musubi.config.reference import reference
from musubi.config.resolve import resolve
from musubi.untrusted import tomllib

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"),
                *(ROOT / "musubi").rglob("*.md")])  # fmt: skip
TRAIN = next(c for c in COMMANDS if c.name == "train")
EXAMPLES = sorted((ROOT / "examples").rglob("*.toml"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _commands(text: str) -> list[list[str]]:
    """The words behind `musubi` on each line that begins with it."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [
        w[w.index("musubi") + 1 :] for w in words if w and "musubi" in w[:4] and "launch" not in w
    ]


def _datasets(text: str, folder: Path) -> tuple[object, ...]:
    """The datasets of a file whose directories and lists are made, empty, for the occasion."""
    for table in tomllib.loads(text)["datasets"]:
        for key, value in table.items():
            if key.endswith("_directory"):
                (folder / value).mkdir(parents=True, exist_ok=True)
            elif key.endswith("_file"):
                (folder / value).touch()
    path = folder / "data.toml"
    path.write_text(text, encoding="utf-8")
    wan = registry.find("wan")
    return read_dataset_config(path, wan, wan.tasks[0]).datasets


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    broken = [
        link
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in link and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_in_pages_parse(page):
    for block in _blocks(page, "sh"):
        for words in _commands(block):
            if words[:1] == ["models"] or words[0].startswith("-"):
                continue
            command = typed(words)
            assert command is not None, words
            # A file that a page speaks of is not there to be read.
            words = [w for i, w in enumerate(words) if "--config" not in (w, words[i - 1])]
            CommandLine(command, words[len(command.words) :])


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_toml_in_pages_can_be_used(page, tmp_path):
    for block in _blocks(page, "toml"):
        content = tomllib.loads(block)
        if "datasets" in content:
            assert _datasets(block, tmp_path)
        elif "arch" in content:
            path = tmp_path / "run.toml"
            path.write_text(block, encoding="utf-8")
            line = CommandLine(TRAIN, ["--config", str(path)])
            assert resolve(TRAIN.options(line.architecture), {}, line.file).model_fields_set


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_options_named_in_pages_exist(page):
    known = {"arch", "config", "debug", "help", "run", "version", "install_completion", "x", "no_x"}
    for command in COMMANDS:
        known |= {r.name for r in command.retired()}
        for name in (None, *registry.names()):
            architecture = None if name is None else registry.find(name)
            for flag in flags(command.options(architecture)).values():
                known |= {flag.name, f"no_{flag.name}", *flag.aliases}
    for name in registry.names():  # and what a line of a prompt file says
        for kind in get_args(Kind):
            known |= set(grammar(registry.find(name), kind).letters)
    text = re.sub(
        r"```(?:text|toml)\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    named = {
        word.replace("-", "_")
        for code in re.findall(r"`(musubi [^`]+|--[^`]+)`", text)
        for word in re.findall(r"(?<![\w-])--([a-z][\w-]+)", code)
    }
    assert named <= known


def test_the_readme_lists_every_built_in_architecture_and_task():
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Try it")[0]
    built_in = [p.name for p in (ROOT / "musubi" / "architectures").iterdir() if p.is_dir()]
    for name in set(built_in) & set(registry.names()):
        architecture = registry.find(name)
        assert f"`{name}`" in table
        assert [v.name for v in architecture.variants if f"`{v.name}`" not in table] == []


def test_the_table_of_options_is_current():
    page = ROOT / "docs" / "options.md"
    assert page.read_text(encoding="utf-8") == reference(), "Run `nox -s reference`."


@pytest.mark.parametrize("path", EXAMPLES, ids=_name)
def test_an_example_loads(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    content = tomllib.loads(text)
    if "project" in content:
        return
    opening = re.match(r"(?:#.*\n)+", text)
    commands = _commands(opening.group().replace("# ", "")) if opening else []
    assert commands, "An example opens with the commands that use it."
    for words in commands:
        placed = [str(ROOT / w) if w.startswith("examples/") else w for w in words]
        command = typed(placed)
        assert command is not None
        line = CommandLine(command, placed[len(command.words) :])
        if line.file is not None:
            typed_too = {"prompt": "a cat"} if command.name == "generate" else {}
            model = command.options(line.architecture)
            assert resolve(model, typed_too, line.file).model_fields_set
        else:
            assert _datasets(text, tmp_path)


def test_commands_of_the_notebook_and_the_image_parse():
    book = json.loads((ROOT / "examples/colab/musubi.ipynb").read_text(encoding="utf-8"))
    lines = [
        line for cell in book["cells"] for line in cell["source"] if line.startswith("!musubi")
    ]
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line.removeprefix("!"))[1:]
        command = typed(words)
        assert command is not None, line
        words = [w for i, w in enumerate(words) if "--config" not in (w, words[i - 1])]
        CommandLine(command, words[len(command.words) :])
    image = (ROOT / "examples/docker/Dockerfile").read_text(encoding="utf-8")
    assert 'ENTRYPOINT ["musubi"]' in image
