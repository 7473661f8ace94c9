"""`musubi bench` at toy size: every phase, and what it says and writes."""

import dataclasses
import json
from pathlib import Path

import pytest

from musubi import registry
from musubi.bench import run as bench
from musubi.config.bench import BenchConfig
from musubi.errors import ConfigError
from musubi.plugin import Architecture, Quiet

SETTINGS = {"width": 64, "height": 64, "frames": 5, "steps": 1, "network_dim": 2, "device": "cpu"}


def toy(name: str) -> Architecture:
    """The architecture, whose published sizes are toys."""
    architecture = registry.find(name)
    return dataclasses.replace(
        architecture,
        variants=tuple(
            dataclasses.replace(v, numbers=architecture.dit.tiny) for v in architecture.variants[:1]
        ),
        components=tuple(dataclasses.replace(c, full=c.tiny) for c in architecture.components),
    )


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
@pytest.mark.parametrize("phase", ["train", "sample", "text", "encode", "decode"])
def test_every_phase_is_measured(name: str, phase: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.jsonl"
    for _ in range(2):
        config = BenchConfig(phase=phase, json_file=str(file), **SETTINGS)
        bench.run(config, toy(name), Quiet())
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert first["arch"] == name and first["phase"] == phase
    assert first["policy"] == second["policy"]
    assert 0 < first["s_min"] <= first["s"] <= first["s_max"]
    assert first["peak_gib"] is None


def test_settings_are_those_of_training(tmp_path: Path) -> None:
    file = tmp_path / "figures.jsonl"
    config = BenchConfig(
        fp8_scaled=True,
        fp8_fast=True,
        blocks_to_swap=1,
        recompute="attention",
        gradient_checkpointing_cpu_offload=True,
        optimizer_offload=True,
        ffn_slices=2,
        json_file=str(file),
        **SETTINGS,
    )
    bench.run(config, toy("wan"), Quiet())
    policy = json.loads(file.read_text())["policy"]
    assert policy == {
        "storage": "fp8_scaled",
        "quantized_matmul": True,
        "streamed": [1],
        "recompute": "attention",
        "offload_activations": True,
        "offload_8bit": False,
        "ffn_chunks": 2,
        "attention_chunks": 1,
        "compile": False,
    }


class Told(Quiet):
    """Keeps the tables."""

    def __init__(self) -> None:
        self.rows: dict[str, float] = {}

    def table(self, title, columns, rows) -> None:
        self.rows |= {name: float(error) for name, error in rows}


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_8_bits_move_answers_and_gradients_by_a_bounded_part(name: str) -> None:
    errors, integers = {}, {}
    for products in (False, True):
        told = Told()
        config = BenchConfig(phase="error", int8=True, int8_fast=products, **SETTINGS)
        bench.run(config, toy(name), told)
        integers[products] = told.rows
        told = Told()
        config = BenchConfig(phase="error", fp8_scaled=True, fp8_fast=products, **SETTINGS)
        bench.run(config, toy(name), told)
        errors[products] = told.rows
        # A weight is off by 2.6%; a toy of two blocks adds up a few of these.
        assert 1e-3 < told.rows["velocity"] < 0.15
        assert 1e-3 < told.rows["gradients"] < 0.30
        assert told.rows["loss"] < 0.10
    assert errors[True]["velocity"] > errors[False]["velocity"]
    for products in (False, True):
        for what in ("velocity", "gradients"):
            assert 1e-4 < integers[products][what] < 0.6 * errors[products][what]


def test_settings_that_move_no_number_have_no_error() -> None:
    told = Told()
    config = BenchConfig(phase="error", blocks_to_swap=2, recompute="attention", **SETTINGS)
    bench.run(config, toy("wan"), told)
    assert told.rows == {"velocity": 0.0, "loss": 0.0, "gradients": 0.0}


def test_a_size_is_named_by_its_end_and_a_wrong_one_refused() -> None:
    wan = registry.find("wan")
    assert bench._variant(wan, None) is wan.variants[0]
    assert bench._variant(wan, "14B").name == "t2v-14B"
    assert bench._variant(wan, "t2v-1.3B").name == "t2v-1.3B"
    with pytest.raises(ConfigError, match="has no size '15B'"):
        bench._variant(wan, "15B")
