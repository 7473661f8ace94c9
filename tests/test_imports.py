"""The house rules that a reader cannot see: who may import whom, what stays unimported, who is named."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest

import musubi
from musubi import registry
from musubi.config.commands import COMMANDS
from musubi.config.dataset_entry import DatasetKeys
from musubi.plugin.inputs import LOSS_MASK

ROOT = Path(musubi.__file__).parent
ROOMS = {
    "errors": (),
    "plugin": ("errors",),
    "registry": ("errors", "plugin"),
    "config": ("errors", "plugin", "registry"),
    "nn": ("errors", "plugin"),
    "flow": ("errors", "plugin", "nn"),
    "weights": ("errors", "plugin", "registry", "nn"),
    "memory": ("errors", "plugin", "nn"),
    "lora": ("errors", "plugin", "registry", "config", "nn", "flow", "weights", "memory"),
    "data": ("errors", "plugin", "registry", "config", "nn", "flow", "weights", "memory"),
}
ROOMS["estimate"] = ("errors", "plugin", "nn", "flow", "weights", "memory")
ROOMS["models"] = ("errors", "plugin", "registry", "config", "nn", "weights")
ROOMS["doctor"] = ("errors", "plugin", "registry", "config", "nn")
ROOMS["cache"] = (*ROOMS["data"], "data", "lora", "estimate")
ROOMS["plan"] = (*ROOMS["cache"], "cache")
ROOMS["generate"] = (*ROOMS["plan"], "plan")
ROOMS["caption"] = ("errors", "plugin", "registry", "config", "weights", "data")
ROOMS["init"] = (*ROOMS["plan"], "plan", "models")
ROOMS["pages"] = (*ROOMS["generate"], "generate")
ROOMS["train"] = (*ROOMS["pages"], "pages")
ROOMS["testing"] = (*ROOMS["train"], "train")
ROOMS["bench"] = (*ROOMS["testing"], "testing")
ROOMS["demo"] = (*ROOMS["testing"], "testing")
ROOMS["cli"] = (*ROOMS["demo"], "demo", "bench", "models", "doctor", "init", "caption")
ROOMS["encoders"] = ("errors", "plugin", "nn", "weights")
ROOMS["architectures"] = ("errors", "plugin", "nn", "weights", "encoders")
ROOMS = {room: (*others, "untrusted", "stopping", "sharing") for room, others in ROOMS.items()}
ROOMS |= {"untrusted": ("errors",), "stopping": (), "sharing": ("errors",)}
HEAVY = ("torch", "transformers", "accelerate", "numpy", "av", "PIL", "bitsandbytes")
SOURCES = sorted(ROOT.rglob("*.py"))


def _imported(tree: ast.AST, package: str) -> set[str]:
    """Dotted names that a file imports, wherever in it the statement stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                base = package.split(".")
                home = ".".join([*base[: len(base) - node.level + 1], *([home] if home else [])])
            found |= {home} | {f"{home}.{alias.name}" for alias in node.names}
    return found


def _forbidden(path: Path, source: str) -> set[str]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = parts[0]
    if room in ("__init__", "__main__"):
        return set()
    package = ".".join(["musubi", *parts[:-1]])
    # No architecture imports another.
    own = f"musubi.architectures.{parts[1]}" if room == "architectures" else f"musubi.{room}"
    bad = set()
    for name in _imported(ast.parse(source), package):
        if not name.startswith("musubi.") or name == "musubi.__version__":
            continue
        if name == own or name.startswith(f"{own}."):
            continue
        if name.split(".")[1] not in ROOMS[room]:
            bad.add(name)
    return bad


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_run_one_way(path):
    assert not _forbidden(path, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("plugin/new.py", "from musubi.config import options"),
        ("nn/new.py", "import musubi.train.loop"),
        ("data/new.py", "from ..train import loop"),
        ("generate/new.py", "def f():\n    from musubi.train.step import step"),
        ("train/new.py", "from musubi.architectures.wan import ARCHITECTURE"),
        ("architectures/one/new.py", "from musubi.architectures.two.dit import Block"),
        ("architectures/one/new.py", "from musubi.architectures.two import ARCHITECTURE"),
        ("encoders/one/new.py", "from musubi.architectures.two import ARCHITECTURE"),
        ("encoders/one/new.py", "from musubi.memory import stream"),
        ("train/new.py", "from musubi.encoders.wan_vae.component import VAE"),
        ("architectures/one/new.py", "from musubi.generate import session"),
    ],
)
def test_a_wrong_import_would_be_found(file, line):
    assert _forbidden(ROOT / file, line)


def test_every_room_is_in_the_order():
    rooms = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in SOURCES}
    assert rooms - {"__init__", "__main__"} <= set(ROOMS)


def _architecture_names() -> list[str]:
    return [
        p.name for p in sorted((ROOT / "architectures").iterdir()) if (p / "__init__.py").exists()
    ]


@pytest.mark.parametrize("name", _architecture_names())
def test_no_architecture_is_named_outside_its_folder(name):
    family = name.partition("_")[0]
    pattern = re.compile(rf"(?<![a-z])({name}|{family})(?![a-z])", re.IGNORECASE)
    homes = (ROOT / "architectures", ROOT / "encoders")  # encoders bear the names of their networks
    named = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in SOURCES
        if not any(path.is_relative_to(home) for home in homes)
        and not path.is_relative_to(ROOT / "demo")  # which demonstrates one of them
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.search(line)
    ]
    assert not named


@pytest.mark.parametrize(
    "code",
    [
        "import musubi.cli; musubi.cli.main(['--help'])",
        "import musubi.cli; musubi.cli.main(['models'])",
        "import musubi.cli; musubi.cli.main(['train', '--arch', 'wan', '--help'])",
        "from musubi import registry; [registry.find(name) for name in registry.names()]",
    ],
)
def test_asking_imports_nothing_heavy(code):
    look = f"""
import sys
try:
    {code}
except SystemExit as stop:
    assert not stop.code, stop.code
print("HEAVY", [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert ran.stderr.splitlines()[-1] == "HEAVY []"


def test_help_leaves_what_it_does_not_need_alone():
    code = (
        "import sys, musubi.cli; musubi.cli.main(['--help'])\n"
        "assert not {'pydantic', 'rich', 'typer', 'importlib.metadata'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_the_package_registers_the_architectures_of_its_folder():
    points = distribution("musubi-diffusion").entry_points.select(group="musubi.architectures")
    assert sorted(p.name for p in points) == _architecture_names()


@cache
def _declared_options() -> frozenset[str]:
    """Names that architectures give to options, inputs and keys of datasets, and the engine does not."""
    engine = {"strength"}  # a field of the plugin surface: `Section.strength`
    engine |= set(DatasetKeys.model_fields) | {LOSS_MASK.column}
    for command in COMMANDS:
        engine |= set(command.options(None).model_fields) | {r.name for r in command.retired()}
    names: set[str | None] = set()
    for name in registry.names():
        architecture = registry.find(name)
        names |= {o.name for o in (*architecture.options, *architecture.dataset_options)}
        for one in architecture.inputs:
            names |= {one.flag, one.directory, one.column}
    return frozenset({name for name in names if name} - engine)


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p.relative_to(ROOT).parts[0] not in ("architectures", "encoders")],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_the_engine_names_no_option_of_an_architecture(path):
    declared = _declared_options()
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        said = {
            ast.Constant: lambda n: n.value,
            ast.Attribute: lambda n: n.attr,
            ast.keyword: lambda n: n.arg,
        }.get(type(node), lambda n: None)(node)
        if isinstance(said, str) and said in declared:
            found.add(said)
    assert not found
