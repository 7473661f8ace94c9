"""Typed prompts, read from a pipe."""

import io
import sys

from musubi.generate.interactive import ask


def test_lines_until_the_input_ends(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat --d 1\n\n  \na dog\n"))
    assert list(ask()) == ["a cat --d 1", "a dog"]
