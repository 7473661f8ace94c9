"""Training takes the options that shaped the records from the records."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import toy_cache

from musubi.cache import encode
from musubi.cache.index import as_cached
from musubi.cache.match import open_training_set
from musubi.config.dataset import read_dataset_config
from musubi.errors import DataError

(GAIN,) = toy_cache.ARCHITECTURE.options


def toy(*commands):
    """The toy, whose `gain` these commands take."""
    option = dataclasses.replace(GAIN, commands=("cache latents", *commands))
    return dataclasses.replace(toy_cache.ARCHITECTURE, options=(option,))


def opened(world, architecture, gain, **more):
    """What `musubi train` does with the value of `gain` that it was given."""
    dataset = read_dataset_config(world.data, architecture, architecture.tasks[0])
    options = as_cached(world.caches, architecture, {"gain": gain})
    task = architecture.task("t2v")
    encode.ensure(
        dataset,
        architecture,
        task,
        files=more.get("files", {}),
        report=world.report,
        options=options,
        device=torch.device("cpu"),
    )
    return open_training_set(dataset, architecture, task, report=world.report, options=options)


@pytest.fixture
def loud(world):
    world.latents(gain=2.0)
    world.text()
    return world


def test_what_was_not_said_again_is_as_it_was(loud):
    before = loud.records()
    assert len(opened(loud, toy("train"), 1.0).items) == 6
    assert loud.records() == before


def test_what_is_missing_is_made_like_the_rest(loud):
    before = loud.records()
    for path in loud.folder.glob("*_cache/red_0_0*_toy.safetensors"):
        path.unlink()
    assert loud.records() != before
    assert len(opened(loud, toy("train"), 1.0, files=loud.weights).items) == 6
    assert loud.records() == before


def test_another_value_makes_records_stale(loud):
    with pytest.raises(DataError, match=r"made with gain = 2\.0, not 3\.0"):
        opened(loud, toy("train"), 3.0)


def test_what_generation_has_too_is_about_previews(loud):
    assert len(opened(loud, toy("train", "generate"), 3.0).items) == 6


def test_without_records_what_was_given_counts(world):
    assert as_cached(world.caches, toy("train"), {"gain": 3.0}) == {"gain": 3.0}
    assert as_cached(world.caches, toy("train"), {"gain": 1.0}) == {"gain": 1.0}
