"""Estimates of full-size networks against what `musubi bench` measured on a card."""

import json
from pathlib import Path

import pytest

from musubi import registry
from musubi.estimate import cards
from musubi.estimate.record import Case
from musubi.estimate.step import Optimizer, estimate
from musubi.lora.options import Asked
from musubi.plan.workload import NewLora
from musubi.plugin import Policy

# A line for each case, as `musubi bench --json` appends it.
LINES = (Path(__file__).parent / "measured.jsonl").read_text(encoding="utf-8").splitlines()
CASES = [json.loads(line) for line in LINES]


def _name(case):
    policy = case["policy"]
    said = [f"{k}={v}" for k, v in policy.items() if v not in (False, [], 1, "none", "native")]
    return f"{case['size']}-{case['phase']}-{case['frames']}f-{','.join(said) or 'plain'}"


def _estimated(case):
    architecture = registry.find(case["arch"])
    variant = architecture.variant(case["size"])
    targets = architecture.dit.traits.lora
    trains = case["phase"] == "train"
    asked = Case(
        architecture=architecture,
        task=architecture.task(variant.task),
        numbers=variant.numbers,
        width=case["width"],
        height=case["height"],
        frames=case["frames"],
        batch=case["batch"],
        attach=NewLora(targets, Asked(rank=case["rank"])) if trains else None,
    )
    policy = Policy(**{**case["policy"], "streamed": tuple(case["policy"]["streamed"])})
    optimizer = Optimizer(name=case["optimizer"])
    return estimate(asked, policy, optimizer=optimizer, card=cards.named(case["device"]))


def test_there_are_enough_cases():
    assert len(CASES) >= 8
    assert len({case["arch"] for case in CASES}) >= 2


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_memory_and_seconds_are_near_what_was_measured(case):
    found = _estimated(case)
    assert found.device / 2**30 == pytest.approx(case["peak_gib"], rel=0.07)
    assert found.seconds == pytest.approx(case["s"], rel=0.25)
