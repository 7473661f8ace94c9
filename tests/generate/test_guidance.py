"""Guidance: what is called at which step, and the combination of the answers."""

import pytest
import torch

from musubi.config.recipe import texts_of
from musubi.generate.guidance import cfg_steps, guided
from musubi.plugin import Conditioning, Recipe


def recipe(scale=3.0, steps=10, **options):
    return Recipe(
        prompt="a",
        negative_prompt="b",
        width=16,
        height=16,
        frames=1,
        fps=8,
        seed=1,
        steps=steps,
        solver="unipc",
        flow_shift=1.0,
        guidance_scale=scale,
        options=options,
    )


@pytest.mark.parametrize(
    ("mode", "pattern"),
    [
        ("early", "SSSSAAAAAA"),
        ("late", "AAAAAASSSS"),
        ("middle", "AAASSSSAAA"),
        ("early_late", "SSAAAAAASS"),
        ("alternate", "SASASAASAS"),
        ("none", "AAAAAAAAAA"),
    ],
)
def test_skip_patterns(mode, pattern):
    assert "".join("A" if on else "S" for on in cfg_steps(mode, 0.6, 10)) == pattern


@pytest.mark.parametrize("mode", ["early", "late", "middle", "early_late", "alternate"])
@pytest.mark.parametrize(("ratio", "on"), [(0.0, 0), (1.0, 7)])
def test_skip_all_or_nothing(mode, ratio, on):
    assert sum(cfg_steps(mode, ratio, 7)) == on


POSITIVE, NEGATIVE = Conditioning({"v": 5.0}), Conditioning({"v": 2.0})


def run(r, i, negative=NEGATIVE):
    """The guided velocity at step i, and the calls it took."""
    seen = []

    def call(x, t, given):
        seen.append(given.inputs["v"])
        return torch.full_like(x, given.inputs["v"])

    v = guided(call, POSITIVE, negative, r, [0.5] * r.steps)(
        torch.zeros(1, 1, 1, 2, 2), torch.ones(1), i
    )
    return v[0, 0, 0, 0, 0].item(), seen


def test_guidance_extrapolates_from_the_negative():
    assert run(recipe(), 0) == (2 + 3 * (5 - 2), [5.0, 2.0])


def test_a_skipped_step_is_the_conditional_alone():
    r = recipe(cfg_skip_mode="late", cfg_apply_ratio=0.5)
    assert run(r, 4)[0] == 11
    assert run(r, 5) == (5, [5.0])


def test_without_a_negative_there_is_one_call():
    assert run(recipe(1.0), 0, None) == (5, [5.0])


def test_a_task_may_have_its_own_guidance():
    def hook(call, positive, negative, r, moment):
        return call(positive) * moment.step + call(negative) * moment.steps + moment.t

    call = lambda x, t, given: torch.full_like(x, given.inputs["v"])  # noqa: E731
    found = guided(call, POSITIVE, NEGATIVE, recipe(), [1.0, 0.5], hook)
    assert found(torch.zeros(1, 1), torch.ones(1), 1).item() == 5 * 1 + 2 * 2 + 0.5


def test_the_negative_is_read_only_when_it_counts(toy):
    task = toy.task("t2v")
    assert texts_of(recipe(2.0), task) == {"prompt": "a", "negative": "b"}
    assert texts_of(recipe(1.0), task) == {"prompt": "a"}
