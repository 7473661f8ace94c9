"""Every option of every command is read by the code that the command runs.

An option that is declared and that nobody reads fails here. `test_idle.py` holds the other half: an
option that is read, but not in the company of some other one, is told to change nothing.
"""

import ast
from pathlib import Path

import pytest

import musubi
from musubi import registry
from musubi.config.commands import COMMANDS

HOME = Path(musubi.__file__).parent
# Where options are declared and looked after: being named there is not being read.
DECLARING = {"idle.py", "outputs.py", "options.py", "fields.py", "reference.py", "commands.py"}
ARCHITECTURES = [registry.find(name) for name in registry.names()]


def own_reads(tree):
    """Names that code reads of some value: attributes, keys, and texts that are handed on."""
    named_only = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called in ("Option", "Retired", "Input", "Component"):
                named_only |= {id(k.value) for k in node.keywords if k.arg == "name"}
                named_only |= {id(a) for a in node.args[:1]}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = id(node) in named_only or not node.value.isidentifier()
            found |= set() if named else {node.value}
    return found


def reads_of(files):
    found = set()
    for path in files:
        found |= own_reads(ast.parse(path.read_text(encoding="utf-8")))
    return found


ENGINE = [
    path
    for path in HOME.rglob("*.py")
    if path.name not in DECLARING
    and "architectures" not in path.parts
    and "testing" not in path.parts
]


@pytest.fixture(scope="module")
def engine():
    return reads_of(ENGINE)


@pytest.fixture(scope="module")
def of_architectures():
    return {
        a.name: reads_of((HOME / "architectures" / a.name).rglob("*.py"))
        | reads_of((HOME / "encoders").rglob("*.py"))
        for a in ARCHITECTURES
    }


def generic(architecture):
    """Options that are declared by what they do: files, pictures, storage, another task."""
    found = set()
    for component in architecture.components:
        found |= {component.option, f"{component.name}_tokenizer", component.fp8}
    found |= {one.flag for one in architecture.inputs}
    for component in architecture.components[1:]:
        ending = component.name.removeprefix(architecture.dit.name)
        found |= {f"lora_weight{ending}", f"lora_multiplier{ending}"}
    found |= {o.name for o in architecture.options if o.task or o.lora_exclude}
    # What is always so, and says that; commands of older tools have it.
    return found | {o.name for o in architecture.options if o.help.startswith("Always so")}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.place is None], ids=lambda c: c.name)
def test_every_option_of_a_command_is_read(command, engine):
    assert set(command.options(None).model_fields) <= engine


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.place], ids=lambda c: c.name)
def test_every_option_of_a_command_with_an_architecture_is_read(
    command, architecture, engine, of_architectures
):
    known = engine | of_architectures[architecture.name] | generic(architecture)
    assert not set(command.options(architecture).model_fields) - known


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_every_option_of_an_architecture_is_read_by_it(architecture, of_architectures):
    own = {o.name for o in architecture.options} | {o.name for o in architecture.dataset_options}
    assert not own - of_architectures[architecture.name] - generic(architecture)


def test_an_option_that_nobody_reads_would_be_found():
    tree = ast.parse(
        'Option(name="unread", type=int)\nlazy: int = option(3, "A help.")\nx.read_it\n'
    )
    assert own_reads(tree) == {"read_it"}
