"""Guidance: what is called at which step, and the combination of the answers."""

import pytest
import torch

from musubi.errors import ConfigError
from musubi.generate.guidance import cfg_steps, guided, layer_skip, needs_negative
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
    """The guided velocity at step i, and the calls it took; skipping blocks answers 1."""
    seen = []

    def call(x, t, given):
        seen.append((given.inputs["v"], given.inputs.get("skip_blocks")))
        return torch.full_like(x, 1.0 if "skip_blocks" in given.inputs else given.inputs["v"])

    v = guided(call, POSITIVE, negative, r)(torch.zeros(1, 1, 1, 2, 2), torch.ones(1), i)
    return v[0, 0, 0, 0, 0].item(), seen


def test_guidance_extrapolates_from_the_negative():
    assert run(recipe(), 0) == (2 + 3 * (5 - 2), [(5.0, None), (2.0, None)])


def test_a_skipped_step_is_the_conditional_alone():
    r = recipe(cfg_skip_mode="late", cfg_apply_ratio=0.5)
    assert run(r, 4)[0] == 11
    assert run(r, 5) == (5, [(5.0, None)])


def test_without_a_negative_there_is_one_call():
    assert run(recipe(1.0), 0, None) == (5, [(5.0, None)])


def test_original_skip_layer_guidance_adds_a_third_call():
    r = recipe(slg_layers="9,10", slg_mode="original", slg_scale=2.0, slg_start=0.1, slg_end=0.3)
    assert run(r, 0)[0] == 11
    value, seen = run(r, 1)
    assert value == 11 + 2 * (5 - 1)
    assert seen == [(5.0, None), (2.0, (9, 10)), (2.0, None)]
    assert run(r, 2)[0] == 19
    assert run(r, 3)[0] == 11


def test_uncond_skip_layer_guidance_takes_the_place_of_the_unconditional_call():
    value, seen = run(recipe(slg_layers="9", slg_mode="uncond"), 0)
    assert value == 1 + 3 * (5 - 1)
    assert seen == [(5.0, None), (2.0, (9,))]


def test_skip_layers_only_where_guidance_applies():
    r = recipe(
        slg_layers="9", slg_mode="uncond", slg_end=1.0, cfg_skip_mode="late", cfg_apply_ratio=0.5
    )
    assert run(r, 4)[0] == 13
    assert run(r, 5) == (5, [(5.0, None)])


def test_the_negative_is_read_only_when_it_counts():
    assert needs_negative(recipe(2.0))
    assert not needs_negative(recipe(1.0))
    assert needs_negative(recipe(1.0, slg_layers="9", slg_mode="original"))
    assert layer_skip(recipe()) is None


def test_layers_must_be_numbers():
    with pytest.raises(ConfigError, match="--slg_layers 'a,b' is not a list of block numbers"):
        layer_skip(recipe(slg_layers="a,b", slg_mode="original"))


@pytest.mark.parametrize("given", [{"slg_layers": "9"}, {"slg_mode": "uncond"}])
def test_layers_and_mode_need_each_other(given):
    with pytest.raises(ConfigError, match="--slg_layers and --slg_mode"):
        layer_skip(recipe(**given))
