"""A pipeline on a GPU: the same as on the CPU where the noise is, and every dtype's autocast."""

import dataclasses

import numpy as np
import pytest
import torch

from musubi.architectures.wan import ARCHITECTURE
from musubi.generate.pipeline import Pipeline
from musubi.plugin import Recipe
from musubi.testing.twins import write_twins
from musubi.weights.nets import Nets

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

RECIPE = Recipe(
    prompt="a red ball",
    negative_prompt="dark",
    width=64,
    height=48,
    frames=9,
    fps=16,
    seed=3,
    steps=6,
    solver="unipc",
    flow_shift=5.0,
    guidance_scale=5.0,
    cpu_noise=True,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_twins(ARCHITECTURE, tmp_path_factory.mktemp("twins"))


def latents(files, device, dtype, recipe=RECIPE):
    nets = Nets(
        ARCHITECTURE,
        files,
        device=torch.device(device),
        dtypes={"dit": dtype, "vae": torch.float32, "t5": torch.float32},
    )
    pipeline = Pipeline(ARCHITECTURE, ARCHITECTURE.task("t2v"), {}, nets, device=device)
    x = pipeline.latents(recipe)
    pipeline.free()
    frames = np.concatenate(list(pipeline.frames(x)))
    assert frames.shape == (9, 48, 64, 3)
    assert nets.loaded == ()
    return x.cpu()


@pytest.fixture(scope="module")
def expected(files):
    return latents(files, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2), (torch.float16, 0.05)]
)
def test_agrees_with_the_cpu(files, expected, dtype, bound):
    got = latents(files, "cuda", dtype)
    error = ((got - expected).norm() / expected.norm()).item()
    assert error < bound, f"{dtype}: {error:.2e}"


def test_noise_of_the_device_is_repeatable(files, expected):
    recipe = dataclasses.replace(RECIPE, cpu_noise=False)
    one, other = (latents(files, "cuda", torch.float32, recipe) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.allclose(one, expected)
