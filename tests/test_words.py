"""Words of messages, by kinds: numbers with their nouns, pronouns with theirs, commands that exist."""

import ast
import re
from pathlib import Path

import pytest

import musubi
from musubi.cli import main
from musubi.config.commands import COMMANDS
from musubi.errors import counted

ROOT = Path(musubi.__file__).parent
NOUNS = (
    "batches|blocks|captions|changes|channels|clips|files|frames|images|items|layers|leftovers|"
    "lines|masks|models|modules|numbers|options|pairs|pictures|places|prompts|records|samples|"
    "sections|sources|steps|tensors|tokens|values|videos"
)


def shown(node):
    """A text with its formatted values as `{…}`."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(
        value.value if isinstance(value, ast.Constant) else f"{{{ast.unparse(value.value)}}}"
        for value in node.values
    )


def texts():
    """(file:line, text) of every literal that is no docstring."""
    out = []
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {
            id(n.value)
            for n in ast.walk(tree)
            if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
        }
        inner = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
        for n in ast.walk(tree):
            if isinstance(n, (ast.Constant, ast.JoinedStr)) and not {id(n)} & (docs | inner):
                text = shown(n)
                if " " in text:
                    out.append((f"{path.relative_to(ROOT)}:{n.lineno}", text))
    return out


TEXTS = texts()


def test_counted():
    assert [counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert counted(2, "batch", "batches") == "2 batches"


def test_a_number_of_things_has_its_noun_in_the_right_form():
    # A bare `count` may be one that is never 1.
    pattern = re.compile(rf"\{{(len\([^}}]*|total|found|used|left)\}} (\w+ )?({NOUNS})\b(?! are)")
    wrong = [place for place, text in TEXTS if pattern.search(text)]
    assert not wrong, "use musubi.errors.counted"


def test_no_sentence_begins_with_a_pronoun_that_stands_for_a_file():
    # A failure is read without what stood before it.
    wrong = [p for p, text in TEXTS if re.search(r"(^|[.:] )It (holds|is made of|lacks) ", text)]
    assert not wrong


def test_a_command_in_backticks_is_one_command():
    wrong = [p for p, t in TEXTS if any(" or " in part for part in t.split("`")[1::2])]
    assert not wrong


COMMAND_NAMES = sorted({command.name for command in COMMANDS} | {"demo", "models"})


@pytest.mark.parametrize(
    "place, command",
    sorted(
        {(p, part) for p, t in TEXTS for part in t.split("`")[1::2] if part.startswith("musubi ")}
    ),
)
def test_a_command_in_backticks_exists(place, command):
    words = re.sub(r"\{[^}]*\}", "X", command).split()[1:]
    names = [n for n in COMMAND_NAMES if words[: len(n.split())] == n.split()]
    dynamic = "X" in words[:2] or words[0].startswith("-")
    assert names or dynamic, f"{place}: {command}"
    if not names:
        return
    wanted = max(names, key=len)
    known = _flags(wanted)
    for word in words:
        if word.startswith("--") and "X" not in word:
            assert word in known, f"{place}: `musubi {wanted}` has no {word}"


_HELP = {}


def _flags(name):
    if name not in _HELP:
        import contextlib
        import io

        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*name.split(), "--help", "all"])
        _HELP[name] = set(re.findall(r"--[a-zA-Z0-9_]+", said.getvalue()))
    return _HELP[name]
