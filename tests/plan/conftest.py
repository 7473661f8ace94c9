"""A folder with a toy network and a small dataset, made once."""

import json

import pytest

from musubi import registry
from musubi.config.options import for_architecture
from musubi.config.plan import PlanConfig
from musubi.plan import machine
from musubi.plan.run import run
from musubi.plugin import Quiet
from musubi.testing import media, twins


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return twins.write_twins(
        registry.find("wan"),
        tmp_path_factory.mktemp("models"),
        task=registry.find("wan").task("t2v"),
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return media.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def roomy(monkeypatch):
    """A computer whose memory decides nothing, whatever else runs on this one."""
    monkeypatch.setattr(machine, "free_host", lambda: 1 << 40)


@pytest.fixture
def config():
    """`config(**options)`: the checked options of `musubi plan`."""

    def make(arch="wan", **options):
        return for_architecture(PlanConfig, registry.find(arch), "plan")(**options)

    return make


@pytest.fixture
def plan(config, tmp_path):
    """`plan(**options)`: what the command wrote as JSON, and what it said."""

    def make(arch="wan", **options):
        report, path = Quiet(), tmp_path / "plan.json"
        run(config(arch, json_file=str(path), **options), registry.find(arch), report)
        return json.loads(path.read_text(encoding="utf-8")), report

    return make
