"""The pages are true: links lead somewhere, commands parse, the reference is current, examples load."""

import re
import shlex
from pathlib import Path

import pytest

from musubi.cli.line import CommandLine, typed
from musubi.config.fields import flags
from musubi.config.reference import reference
from musubi.config.resolve import read_file, tomllib

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"),
                *(ROOT / "musubi").rglob("*.md")])  # fmt: skip
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
def test_toml_in_pages_is_toml(page):
    for block in _blocks(page, "toml"):
        tomllib.loads(block)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_options_named_in_pages_exist(page):
    from musubi import registry
    from musubi.config.commands import COMMANDS

    known = {"arch", "config", "debug", "help", "version", "install_completion", "x", "no_x"}
    for command in COMMANDS:
        known |= {r.name for r in command.retired()}
        for name in (None, "wan"):
            architecture = None if name is None else registry.find(name)
            for flag in flags(command.options(architecture)).values():
                known |= {flag.name, f"no_{flag.name}", *flag.aliases}
    text = re.sub(
        r"```(?:text|toml)\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    named = {
        word.replace("-", "_")
        for code in re.findall(r"`(musubi [^`]+|--[^`]+)`", text)
        for word in re.findall(r"(?<![\w-])--([a-z][\w-]+)", code)
    }
    assert named <= known


def test_the_table_of_options_is_current():
    page = ROOT / "docs" / "options.md"
    assert page.read_text(encoding="utf-8") == reference(), "Run `nox -s reference`."


@pytest.mark.parametrize("path", EXAMPLES, ids=_name)
def test_an_example_loads(path):
    text = path.read_text(encoding="utf-8")
    tomllib.loads(text)
    opening = re.match(r"(?:#.*\n)+", text)
    for words in _commands((opening.group() if opening else "").replace("# ", "")):
        command = typed(words)
        assert command is not None
        if "--config" in words:
            file = read_file(ROOT / words[words.index("--config") + 1])
            line = CommandLine(command, ["--arch", file.arch or words[words.index("--arch") + 1]])
            assert set(file.values) <= set(line.flags)
