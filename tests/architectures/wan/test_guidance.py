"""Skip-layer guidance: what is called at which step, and the combination of the answers."""

import pytest
import torch

from musubi.architectures.wan.guidance import guided, layer_skip, texts
from musubi.errors import ConfigError
from musubi.plugin import Conditioning, Moment, Recipe


def recipe(scale=3.0, **options):
    return Recipe(
        prompt="a",
        negative_prompt="b",
        width=16,
        height=16,
        frames=1,
        fps=8,
        seed=1,
        steps=10,
        solver="unipc",
        flow_shift=1.0,
        guidance_scale=scale,
        options=options,
    )


POSITIVE, NEGATIVE = Conditioning({"v": 5.0}), Conditioning({"v": 2.0})


def run(r, i):
    """The guided velocity at step i, and the calls it took; skipping blocks answers 1."""
    seen = []

    def call(given):
        seen.append((given.inputs["v"], given.inputs.get("skip_blocks")))
        return torch.tensor(1.0 if "skip_blocks" in given.inputs else given.inputs["v"])

    moment = Moment(step=i, steps=10, t=0.5)
    return guided(call, POSITIVE, NEGATIVE, r, moment).item(), seen


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


def test_the_negative_is_read_only_when_it_counts():
    assert "negative" in texts(recipe(2.0))
    assert "negative" not in texts(recipe(1.0))
    assert "negative" in texts(recipe(1.0, slg_layers="9", slg_mode="original"))
    assert layer_skip(recipe()) is None


def test_layers_must_be_numbers():
    with pytest.raises(ConfigError, match="--slg_layers 'a,b' is not a list of block numbers"):
        layer_skip(recipe(slg_layers="a,b", slg_mode="original"))


@pytest.mark.parametrize("given", [{"slg_layers": "9"}, {"slg_mode": "uncond"}])
def test_layers_and_mode_need_each_other(given):
    with pytest.raises(ConfigError, match="--slg_layers and --slg_mode"):
        layer_skip(recipe(**given))
