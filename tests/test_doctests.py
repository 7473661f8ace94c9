"""The examples in docstrings hold."""

import doctest
import importlib
from pathlib import Path

import pytest

import musubi

ROOT = Path(musubi.__file__).parent
MODULES = [
    ".".join(["musubi", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
