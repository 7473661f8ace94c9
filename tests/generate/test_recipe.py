"""From what was asked to a whole recipe: defaults, sizes, lengths, and which task is meant."""

import dataclasses
import math
from pathlib import Path

import pytest

from musubi.config.recipe import build_recipe, preview_recipe
from musubi.config.task import Choice, choose_task
from musubi.errors import CheckpointError, ConfigError


@pytest.fixture
def build(toy, report):
    def build(make=build_recipe, **given):
        return make(toy, choose_task(toy, "t2v"), given, {"cfg_skip_mode": "none"}, report)

    return build


def test_the_task_fills_every_gap(build):
    recipe = build(prompt="a", steps=None, seed=3)
    assert dataclasses.asdict(recipe) == {
        "prompt": "a",
        "negative_prompt": "bad",
        "width": 32,
        "height": 16,
        "frames": 5,
        "fps": 8.0,
        "seed": 3,
        "steps": 4,
        "solver": "unipc",
        "flow_shift": 3.0,
        "guidance_scale": 2.0,
        "cpu_noise": False,
        "options": {"cfg_skip_mode": "none"},
    }


def test_seeds_differ_when_none_is_given(build):
    assert build().seed != build().seed


def test_an_empty_negative_prompt_means_the_tasks_own(build):
    assert build(negative_prompt="").negative_prompt == "bad"
    assert build(negative_prompt="dark").negative_prompt == "dark"


def test_a_side_that_does_not_fit_is_refused_with_the_nearest(build):
    with pytest.raises(ConfigError, match=r"makes no 100x50 .*multiples of 16.*--size 96x48"):
        build(width=100, height=50)


def test_frames_are_rounded_down_with_a_note(build, report):
    assert build(frames=12).frames == 9
    assert report.notes == ["12 frames are rounded down to 9: Toy makes 4 k + 1 of them."]
    assert build(frames=1).frames == 1
    assert len(report.notes) == 1


@pytest.mark.parametrize("given", [{"frames": 0}, {"steps": 0}, {"frames": -3}])
def test_nothing_is_refused(build, given):
    with pytest.raises(ConfigError, match="makes nothing"):
        build(**given)


def test_an_untried_solver_is_said(build, report):
    build(solver="dpm++")
    assert "dpm++ was not tried" in report.warnings[0]


def test_options_of_other_architectures_are_refused(build):
    with pytest.raises(ConfigError, match="Toy takes no image_path"):
        build(image_path="a.png")
    assert build(cfg_skip_mode="late").options == {"cfg_skip_mode": "late"}


def test_prompts_have_the_bounds_of_flags(build):
    assert build(seed=-1).seed >= 0
    for wrong in ({"seed": 2**63}, {"seed": -2}, {"flow_shift": 0.0}, {"guidance_scale": math.inf}):
        with pytest.raises(ConfigError, match="not possible"):
            build(**wrong)


def test_previews_are_small_and_rounded_down(build):
    recipe = build(preview_recipe, prompt="a", width=100, height=9)
    assert (recipe.width, recipe.height, recipe.frames, recipe.steps) == (96, 16, 1, 20)
    assert build(preview_recipe).width == 256
    assert recipe.flow_shift == 3.0


class _Small:
    """Stands for the address of a function."""

    def __call__(self, sampling, width, height):
        return dataclasses.replace(sampling, flow_shift=1.5 if width < 64 else 9.0)


def test_defaults_may_depend_on_the_size(toy, report):
    task = dataclasses.replace(toy.task("t2v"), adjust=_Small())
    shifts = [
        build_recipe(toy, Choice(task), {"width": w, "height": 64}, {}, report).flow_shift
        for w in (32, 64)
    ]
    assert shifts == [1.5, 9.0]


def test_a_variant_may_have_its_own_defaults(toy, report):
    sampling = dataclasses.replace(toy.task("t2v").sampling, steps=99)
    variant = dataclasses.replace(toy.variants[0], sampling=sampling)
    assert build_recipe(toy, Choice(toy.task("t2v"), variant), {}, {}, report).steps == 99


def test_task_by_name_by_variant_and_by_checkpoint(toy):
    numbers = {"channels": 4, "width": 8}
    assert choose_task(toy, "t2v-toy").variant.name == "t2v-toy"
    assert choose_task(toy, "wide").task.name == "wide"
    assert choose_task(toy, None).task.name == "t2v"
    assert choose_task(toy, None, {"channels": 9}).task.name == "wide"
    assert choose_task(toy, None, numbers).variant.name == "t2v-toy"
    assert choose_task(toy, "t2v-toy", {"channels": 4, "width": 77}).task.name == "t2v"


def test_a_task_against_the_checkpoint_is_refused_with_both_facts(toy):
    with pytest.raises(
        ConfigError,
        match=r"--task wide needs a checkpoint with channels 9, and x.safetensors has channels 4"
        r".*--task t2v",
    ):
        choose_task(toy, "wide", {"channels": 4}, Path("x.safetensors"))


def test_a_checkpoint_for_no_task_is_refused(toy):
    with pytest.raises(CheckpointError, match="made for no task of Toy"):
        choose_task(toy, None, {"channels": 5})


def test_an_unknown_task_is_refused_with_the_nearest(toy):
    with pytest.raises(ConfigError, match=r"no task 't2v-tyo'.*'t2v-toy'"):
        choose_task(toy, "t2v-tyo")
