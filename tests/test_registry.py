"""Architectures by name, and what is said about those that cannot be had."""

from importlib.metadata import EntryPoint

import pytest

from musubi import registry
from musubi.cli import models
from musubi.errors import ConfigError
from musubi.plugin import Architecture, Quiet


@pytest.fixture
def installed(monkeypatch):
    """Make the registry see exactly these entry points."""

    def install(*points: tuple[str, str]) -> None:
        found = [EntryPoint(name, value, registry.GROUP) for name, value in points]
        monkeypatch.setattr(registry, "entry_points", lambda group: found)
        registry._points.cache_clear()
        registry.find.cache_clear()

    yield install
    monkeypatch.undo()
    registry._points.cache_clear()
    registry.find.cache_clear()


def test_what_is_installed_is_found():
    assert "wan" in registry.names()
    found = registry.find("wan")
    assert isinstance(found, Architecture)
    assert found is registry.find("wan")


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ConfigError) as error:
        registry.find("wann")
    assert error.value.what == "There is no architecture 'wann'."
    assert error.value.fix.startswith("Did you mean 'wan'?")


def test_a_plugin_that_fails_to_import_is_named(installed):
    installed(("broken", "musubi_no_such_package:ARCHITECTURE"))
    with pytest.raises(ConfigError, match=r"'broken'.*cannot be imported.*musubi_no_such_package"):
        registry.find("broken")


def test_an_entry_point_of_another_name_is_refused(installed):
    installed(("other", "musubi.architectures.wan:ARCHITECTURE"))
    with pytest.raises(ConfigError, match="is not an Architecture of that name"):
        registry.find("other")


def test_two_packages_may_not_claim_one_name(installed):
    installed(("wan", "one:ARCHITECTURE"), ("wan", "two:ARCHITECTURE"))
    with pytest.raises(ConfigError, match="Two packages register the architecture 'wan'"):
        registry.names()


def test_a_broken_plugin_is_listed_with_its_reason_and_the_others_too(installed, monkeypatch):
    installed(
        ("broken", "musubi_no_such_package:ARCHITECTURE"),
        ("wan", "musubi.architectures.wan:ARCHITECTURE"),
    )
    said = Quiet()
    monkeypatch.setattr("musubi.cli.report.terminal", lambda: said)
    models.list_all()
    assert any("broken" in line and "see below" in line for line in said.notes)
    assert any("t2v-1.3B" in line for line in said.notes)
    assert "musubi_no_such_package" in said.warnings[0]
