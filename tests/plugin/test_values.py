"""The plain values of the plugin surface."""

import dataclasses

import pytest

from musubi import registry
from musubi.plugin import Field, Lazy, Quiet


def test_an_address_is_imported_on_use():
    assert Lazy("musubi.errors:nearest")("sed", ["seed"]) == "seed"
    with pytest.raises(ModuleNotFoundError):
        Lazy("musubi.no_such_module:name").load()


def test_field_names_say_what_their_keys_carry():
    assert Field(name="latents_image", dims="CFHW").is_latents
    assert Field(name="llm_mask", dims="L").is_mask
    assert not Field(name="t5", dims="LD").is_latents


def test_an_architecture_is_frozen_and_answers_by_name():
    found = registry.find(registry.names()[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.name = "other"
    assert found.dit.role == "dit"
    for task in found.tasks:
        assert found.task(task.name) is task
        for component in task.components:
            assert found.component(component).role != "dit"
    for variant in found.variants:
        assert found.task(found.variant(variant.name).task)
    for missing in (found.component, found.task, found.variant):
        with pytest.raises(KeyError):
            missing("no such name")


def test_a_quiet_report_remembers_what_was_said():
    quiet = Quiet()
    quiet.note("one")
    quiet.warn("two")
    quiet.warn("two")
    quiet.table("three", ("a", "b"), [(1, 2)])
    with quiet.progress("four", 2) as bar:
        bar.advance(1, loss=0.5)
    assert quiet.notes == ["one", "three", "1 | 2"]
    assert quiet.warnings == ["two"]
