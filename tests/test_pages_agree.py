"""What the pages tell agrees: one recipe everywhere, and the same commands in PowerShell as in sh."""

import re
import shlex
from pathlib import Path

import pytest

from musubi.init import write
from musubi.untrusted import tomllib

ROOT = Path(__file__).parent.parent
PAGES = [
    *ROOT.glob("README*.md"),
    *(p for p in (ROOT / "docs").rglob("*.md") if "decisions" not in p.parts),
]
RANK, ALPHA = "32", "16"


def _blocks(text):
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _trainings():
    """Page → the words of each training run that is written out there."""
    for page in PAGES:
        for language, block in _blocks(page.read_text(encoding="utf-8")):
            if language != "sh":
                continue
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:2] == ["musubi", "train"] and "--network_dim" in words:
                    yield page.name, words


def _after(words, flag):
    return words[words.index(flag) + 1] if flag in words else None


def test_every_page_trains_with_the_same_rank_and_alpha():
    found = list(_trainings())
    assert len(found) >= 6
    wrong = [
        (page, _after(words, "--network_dim"), _after(words, "--network_alpha"))
        for page, words in found
        if (_after(words, "--network_dim"), _after(words, "--network_alpha")) != (RANK, ALPHA)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").rglob("train.toml")), ids=lambda p: p.parent.name
)
def test_every_example_trains_with_them_too(path):
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    recipe = {}
    for key, value in content.items():
        recipe |= value if isinstance(value, dict) else {key: value}
    assert (str(recipe["network_dim"]), str(recipe["network_alpha"])) == (RANK, ALPHA)


def test_init_writes_them_too():
    text = Path(write.__file__).read_text(encoding="utf-8")
    assert f'"network_dim", "{RANK}"' in text
    assert f'"network_alpha", "{ALPHA}"' in text


def test_the_page_on_data_names_them():
    table = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert f"| `--network_dim` | {RANK} |" in table
    assert f"| `--network_alpha` | {ALPHA} |" in table


@pytest.mark.parametrize("name", ["README.md", "README.ja.md", "docs/getting-started.md"])
def test_commands_of_several_lines_are_there_for_powershell(name):
    """5.1 knows neither a backslash at the end of a line nor `&&`, and each line is the same command."""
    blocks = _blocks((ROOT / name).read_text(encoding="utf-8"))
    for number, (language, block) in enumerate(blocks):
        if language == "sh" and "\\\n" in block:
            assert blocks[number + 1][0] == "powershell", block
            theirs = blocks[number + 1][1]
            said = re.findall(r"`\n", theirs)
            assert len(said) == block.count("\\\n")
            same = block.replace("\\\n", " ").split()
            assert theirs.replace("`\n", " ").split() == same
    for language, block in blocks:
        if language == "powershell":
            assert "&&" not in block
            assert "\\\n" not in block
            assert not re.search(r"` +\n", block), "a blank behind the backtick ends the line"
            assert "'" not in block or block.count("'") % 2 == 0
            assert not re.search(r"[“”‘’]", block)
