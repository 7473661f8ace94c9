"""The built wheel under the name it is published by, installed as users of uv and pipx do.

Nothing is downloaded: each package that the wheel needs is stood in for by an empty wheel of the same
name and version, so that names and bounds are resolved, and its content comes from this environment.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.pipeline
ROOT = Path(__file__).parents[1]
NAME = "musubi-diffusion"
OURS = ("musubi", "__editable__", "_editable_impl_musubi")


def tool(name: str) -> Path:
    """A program that a package of this environment brought."""
    pytest.importorskip(name)
    names = (name, f"{name}.exe")
    return Path(next(f for f in metadata.files(name) or () if f.name in names).locate()).resolve()


def stand_in(folder: Path, name: str, version: str) -> None:
    """A wheel of that name without content."""
    stem = f"{re.sub('[-_.]+', '_', name)}-{version}"
    files = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: a\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    rows = [f"{stem}.dist-info/RECORD,,"]
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        rows.append(f"{path},sha256={digest.decode()},{len(text.encode())}")
    files[f"{stem}.dist-info/RECORD"] = "\n".join(rows) + "\n"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "musubi", source / "musubi", ignore=shutil.ignore_patterns("__pycache__")
    )
    words = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([sys.executable, *words, "--wheel-dir", str(folder), str(source)], check=True)
    (made,) = folder.glob("*.whl")
    assert made.name.startswith("musubi_diffusion-")
    with zipfile.ZipFile(made) as wheel:
        (notes,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        needed = re.findall(r"^Requires-Dist: ([\w-]+)([^\n]*)", wheel.read(notes).decode(), re.M)
    for name, rest in needed:
        if "extra ==" in rest:
            continue
        try:
            stand_in(folder, name, metadata.version(name))
        except metadata.PackageNotFoundError:
            assert "python_version" in rest  # tomli
    return folder


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory) -> dict[str, str]:
    """The environment of a command: this one's packages without musubi, and folders of its own."""
    packages = tmp_path_factory.mktemp("packages")
    for place in map(Path, sys.path):
        if place.name in ("site-packages", "dist-packages"):
            for entry in place.iterdir():
                link = packages / entry.name
                if not entry.name.startswith(OURS) and not link.exists():
                    link.symlink_to(entry)
    home = tmp_path_factory.mktemp("home")
    folders = {
        "UV_TOOL_DIR": "tools",
        "UV_TOOL_BIN_DIR": "uv-bin",
        "UV_CACHE_DIR": "uv-cache",
        "PIPX_HOME": "pipx",
        "PIPX_BIN_DIR": "pipx-bin",
        "PIPX_MAN_DIR": "pipx-man",
    }
    env = {**os.environ, **{name: str(home / place) for name, place in folders.items()}}
    env.pop("VIRTUAL_ENV", None)
    return {**env, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "HOME": str(home)}


def done(words: list[object], env: dict[str, str]) -> str:
    run = subprocess.run(
        [str(word) for word in words],
        env=env,
        cwd=env["HOME"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, f"{words}\n{run.stdout}\n{run.stderr}"
    return run.stdout + run.stderr


def is_installed(program: Path, env: dict[str, str]) -> None:
    """The command runs, and what it runs is the wheel that was installed."""
    python = program.resolve().with_name("python")
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    # behind its own packages, and read also where pipx has a program ignore PYTHONPATH
    (site / "surroundings.pth").write_text(f"{env['PYTHONPATH']}\n", encoding="utf-8")
    env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    assert done([program, "--version"], env).split() == ["musubi", metadata.version(NAME)]
    assert "wan" in done([program, "models"], env)
    code = f"import musubi, importlib.metadata as m; print(musubi.__file__, m.version({NAME!r}))"
    assert str(site / "musubi") in done([python, "-c", code], env)


UV = ("--offline", "--no-index", "--python", sys.executable)


def test_uv_tool_install(wheels, surroundings):
    done([tool("uv"), "tool", "install", *UV, "--find-links", wheels, NAME], surroundings)
    is_installed(Path(surroundings["UV_TOOL_BIN_DIR"], "musubi"), surroundings)


def test_uvx_runs_the_demo(wheels, surroundings, tmp_path):
    words = ["tool", "run", "--isolated", *UV, "--find-links", wheels, "--from", NAME]
    out = tmp_path / "demo"
    done([tool("uv"), *words, "musubi", "demo", "--fast", "--out", out], surroundings)
    assert (out / "index.html").is_file()


def test_pipx_install(wheels, surroundings):
    # pipx has uv do the work where it is there; with pip it would first fetch a newer pip
    pip = f"--offline --no-index --find-links {wheels}"
    words = ["install", "--backend", "uv", "--python", sys.executable, f"--pip-args={pip}", NAME]
    path = os.pathsep.join([str(tool("uv").parent), surroundings["PATH"]])
    done([tool("pipx"), *words], {**surroundings, "PATH": path})
    is_installed(Path(surroundings["PIPX_BIN_DIR"], "musubi"), surroundings)


def test_what_is_said_to_install_is_this_package():
    """`pip install musubi` would bring another project."""
    places = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "musubi").rglob("*.py")]
    other = re.compile(r"\bmusubi\[|(pip|pipx|uv tool) install musubi(?!-)")
    assert not [p for p in places if other.search(p.read_text(encoding="utf-8"))]
