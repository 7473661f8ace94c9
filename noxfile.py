"""Every check of this project, each in an environment of its own: `nox -l` lists them.

`MUSUBI_TORCH` names the torch to install (`MUSUBI_TORCH="torch==2.13.0" nox -s tests`); without it
pip chooses one. `NOX_DEFAULT_VENV_BACKEND=virtualenv` installs with pip where uv is not wanted.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "tests"]

PROJECT = nox.project.load_toml("pyproject.toml")
CODE = ("musubi", "tests", "examples", "noxfile.py")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

# What the versions of other packages decide: reading and writing media, weights, the command line, and a
# tiny model that is cached for, trained and generated with.
VERSIONS = (
    "tests/data",
    "tests/weights",
    "tests/config",
    "tests/cli",
    "tests/generate/test_write.py",
)
WHICH = "from importlib.metadata import *; print(*sorted(f'{d.name}=={d.version}' for d in distributions()))"
PIPELINE = ("tests/pipelines/test_wan.py", "-k", "caching_writes or generating_with")


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Torch first, as the setting says, then the package as its users get it, then the groups."""
    torch = os.environ.get("MUSUBI_TORCH")
    pinned = [torch] if torch else []
    if pinned:
        session.install(*pinned)
    needed = [line for group in groups for line in nox.project.dependency_groups(PROJECT, group)]
    session.install(f".{extras}", *needed, *pinned)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format and spell."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    pages = ("docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "AGENTS.md")
    # Tests misspell on purpose, and a tokenizer is made of halves of words.
    session.run("codespell", "--skip=*.json,*.safetensors", "musubi", "examples", *pages)


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    install(session, "types")
    session.run("pyright")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests against the installed package; words behind `--` go to pytest."""
    install(session, "test")
    workers = ("--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal")
    session.run("pytest", *workers, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Kill every command, let the disk fail, damage every kind of file: minutes."""
    install(session, "test")
    env = {"OMP_NUM_THREADS": "1", "MUSUBI_FAULTS": "all"}
    session.run("pytest", "tests/faults", *session.posargs, env=env)


def lowest() -> list[str]:
    """Each package that musubi needs, in the lowest version that pyproject.toml allows."""
    return [
        re.sub(r">=([\w.]+)[^;]*", r"==\1", line) for line in PROJECT["project"]["dependencies"]
    ]


def versions(session: nox.Session, *packages: str) -> None:
    """Run the tests that versions decide, and say which versions these were."""
    needed = nox.project.dependency_groups(PROJECT, "versions")
    session.install(".", *needed, *packages)
    session.run("python", "-c", WHICH)
    env = {"OMP_NUM_THREADS": "1"}
    workers = ("--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal")
    session.run("pytest", *workers, *(session.posargs or VERSIONS), env=env)
    if not session.posargs:
        session.run("pytest", *PIPELINE, env=env)


@nox.session(python=PYTHONS[0], default=False)
def minimums(session: nox.Session) -> None:
    """Run on the lowest version of each package that pyproject.toml allows."""
    versions(session, *lowest())


@nox.session(python=PYTHONS, default=False)
def newest(session: nox.Session) -> None:
    """Run on the newest version of each package that there is for a Python."""
    torch = os.environ.get("MUSUBI_TORCH")
    versions(session, *([torch] if torch else []))


@nox.session
def docs(session: nox.Session) -> None:
    """Check that links lead somewhere, commands parse, and generated pages are current."""
    install(session, "test")
    session.run("pytest", "tests/test_docs.py", "tests/test_doctests.py", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Load every example, and run the tiny one end to end."""
    install(session, "test")
    session.run("pytest", "tests/test_docs.py", "-k", "example")
    session.run("python", "examples/quickstart.py", str(Path(session.create_tmp()) / "quickstart"))


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Teach the tiny model of the package something new; words behind `--` go to the demo."""
    install(session)
    session.run("musubi", "demo", *session.posargs)


@nox.session(default=False)
def quickstart(session: nox.Session) -> None:
    """Cache, train, generate and merge with tiny random weights."""
    install(session)
    session.run("python", "examples/quickstart.py", *(session.posargs or ["quickstart"]))


@nox.session(default=False)
def reference(session: nox.Session) -> None:
    """Write docs/options.md anew."""
    install(session)
    session.run("python", "-m", "musubi.config.reference", "docs/options.md")


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build the wheel and the source archive into dist/."""
    session.install("build")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """Run the tests that need a CUDA device."""
    install(session, "test")
    session.run("pytest", "-m", "gpu", *session.posargs)
