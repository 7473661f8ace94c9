"""The Dockerfile and the notebook: what they run are commands that there are."""

import json
import re
import shlex
from pathlib import Path

from musubi.cli.line import CommandLine
from musubi.config.commands import typed
from musubi.untrusted import tomllib

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "examples" / "docker" / "Dockerfile"
NOTEBOOK = ROOT / "examples" / "colab" / "musubi.ipynb"
KNOWN = {"FROM", "RUN", "ARG", "COPY", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"}


def _instructions():
    """(Keyword, rest) of each line of the Dockerfile, continued lines joined."""
    text = DOCKER.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def test_the_dockerfile_has_known_instructions_in_a_usable_order():
    found = list(_instructions())
    assert {word for word, _ in found} <= KNOWN
    assert found[0][0] == "FROM"
    entry = [json.loads(rest) for word, rest in found if word == "ENTRYPOINT"]
    assert entry == [["musubi"]]
    assert [json.loads(rest) for word, rest in found if word == "CMD"] == [["--help"]]


def test_the_dockerfile_installs_what_the_package_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [rest for word, rest in _instructions() if word == "RUN" and "pip install" in rest]
    installed = []
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part)
            assert words[:2] == ["pip", "install"]
            skip = False
            for word in words[2:]:
                if skip or word.startswith("-"):
                    skip = word == "--index-url"
                else:
                    installed.append(word)
    assert installed[0] == "torch" and len(installed) == 2
    place, extras = re.fullmatch(r"(/\w+)\[(.+)\]", installed[1]).groups()
    assert ("COPY", f". {place}") in list(_instructions())
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    version = next(rest for word, rest in _instructions() if word == "FROM")
    assert re.fullmatch(r"python:3\.1[0-3]-slim", version)


def _cells(kind):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def _lines():
    return [line for cell in _cells("code") for line in cell.splitlines()]


def test_the_notebooks_commands_are_commands():
    found = []
    for line in _lines():
        if not line.startswith("!"):
            continue
        words = shlex.split(line[1:].replace("{CLIPS}", "clips").replace("{OUT}", "out"))
        assert words[0] == "musubi"
        command = typed(words[1:])
        assert command is not None, line
        words = [w for i, w in enumerate(words) if "--config" not in (w, words[i - 1])]
        if command.words[0] != "models":
            CommandLine(command, words[1 + len(command.words) :])
        found.append(command.name)
    assert found == ["doctor", "demo", "models fetch", "init", "cache check", "train"]


def test_the_rest_of_the_notebook_is_python():
    plain = [cell for cell in _cells("code") if not cell.startswith(("!", "%"))]
    for cell in plain:
        kept = [line for line in cell.splitlines() if not line.startswith("%")]
        compile("\n".join(kept), "cell", "exec")
    assert len(plain) >= 2
