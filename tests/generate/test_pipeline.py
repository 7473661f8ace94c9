"""A pipeline: what is loaded when, what is encoded once, and that the numbers are the solver's."""

import dataclasses

import numpy as np
import pytest
import torch

from musubi.errors import RunError
from musubi.flow import schedules, solvers
from musubi.generate.pipeline import Pipeline, compute_dtype
from musubi.plugin import Recipe

RECIPE = Recipe(
    prompt="a cat",
    negative_prompt="bad",
    width=32,
    height=16,
    frames=5,
    fps=8,
    seed=7,
    steps=3,
    solver="unipc",
    flow_shift=3.0,
    guidance_scale=2.0,
)


@pytest.fixture
def pipeline(toy, nets):
    return Pipeline(toy, toy.task("t2v"), {}, nets, device="cpu")


def test_networks_come_and_go_in_phases(pipeline, nets):
    (frames,) = pipeline.frames(pipeline.latents(RECIPE))
    pipeline.free()
    assert nets.log == ["load words", "free words", "load dit", "load vae", "free vae", "free dit"]
    assert frames.shape == (5, 16, 32, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 0


def test_parked_networks_stay_loaded(pipeline, nets):
    pipeline.park = True
    for seed in (1, 2):
        list(pipeline.frames(pipeline.latents(dataclasses.replace(RECIPE, seed=seed))))
    assert nets.log == ["load words", "load dit", "load vae"]


def test_prompts_are_encoded_once_and_encoders_loaded_once(pipeline, nets, calls):
    other = dataclasses.replace(RECIPE, prompt="a dog", seed=8)
    pipeline.prepare([RECIPE, other, dataclasses.replace(RECIPE, seed=9)])
    assert calls["encode"] == 3  # two prompts and one negative
    pipeline.latents(RECIPE)
    pipeline.latents(other)
    assert calls["encode"] == 3
    assert nets.log == ["load words", "free words", "load dit"]


def test_without_guidance_the_network_is_called_once_a_step(pipeline, calls):
    pipeline.latents(dataclasses.replace(RECIPE, guidance_scale=1.0))
    assert calls["predict"] == 3
    assert calls["encode"] == 1
    pipeline.latents(RECIPE)
    assert calls["predict"] == 9


def test_latents_are_what_the_solver_gives(pipeline, modules):
    words = modules["words"].table
    dit = modules["dit"]

    def v(text, x, t):
        return dit(x, t, words(torch.tensor(list(text.encode())))[None])

    def predict(x, t, i):
        c, u = v("a cat", x, t), v("bad", x, t)
        return u + 2.0 * (c - u)

    noise = torch.randn(1, 4, 2, 2, 4, generator=torch.Generator().manual_seed(7))
    levels = schedules.sigmas("unipc", 3, 3.0)
    with torch.no_grad():
        expected = solvers.solve(
            "unipc", predict, noise, levels, schedules.timesteps("unipc", levels)
        )
    assert torch.equal(pipeline.latents(RECIPE), expected)


def test_a_dit_in_training_is_used_as_it_is(toy, nets, modules):
    dit = modules["dit"].train()
    pipeline = Pipeline(toy, toy.task("t2v"), {}, nets, device="cpu", denoisers={"dit": dit})
    latents = pipeline.latents(RECIPE)
    pipeline.free()
    assert not latents.requires_grad
    assert dit.training
    assert "load dit" not in nets.log
    assert "free dit" not in nets.log


def test_same_seed_same_latents_and_another_seed_others(pipeline):
    first, again = pipeline.latents(RECIPE), pipeline.latents(RECIPE)
    assert torch.equal(first, again)
    assert not torch.equal(first, pipeline.latents(dataclasses.replace(RECIPE, seed=8)))


def test_the_state_stays_float32_under_autocast(toy, nets, modules):
    modules["dit"].bfloat16()
    pipeline = Pipeline(toy, toy.task("t2v"), {}, nets, device="cpu")
    assert pipeline.latents(RECIPE).dtype == torch.float32


def test_numbers_that_are_not_finite_stop(pipeline, modules):
    modules["dit"].text.bias.data.fill_(float("nan"))
    with pytest.raises(RunError, match=r"latents of 'a cat' \(seed 7\) are not finite"):
        pipeline.latents(RECIPE)


def test_the_computing_dtype_is_that_of_most_weights():
    mixed = torch.nn.Sequential(torch.nn.Linear(9, 9).half(), torch.nn.LayerNorm(9))
    assert compute_dtype(mixed) == torch.float16
    assert compute_dtype(torch.nn.Linear(2, 2)) == torch.float32
    assert compute_dtype(torch.nn.Linear(2, 2).to(torch.float8_e4m3fn)) == torch.bfloat16
