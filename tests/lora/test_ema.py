"""The average of LoRA files: against sums written out, and what is refused."""

import os
import weakref

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi.config.lora import LoraEmaConfig
from musubi.errors import CheckpointError, ConfigError
from musubi.lora.ema import betas, gamma, run, weights_of
from musubi.lora.metadata import with_hashes
from musubi.plugin import Quiet

GAMMA = max(np.roots([1, 7, 16 - 0.2**-2, 12 - 0.2**-2]).real)


@pytest.fixture
def files(tmp_path):
    """Four files, each newer than the one before."""
    torch.manual_seed(0)
    paths = []
    for i in range(4):
        tensors = {
            "lora_unet_q.lora_down.weight": torch.randn(2, 4).bfloat16(),
            "lora_unet_q.lora_up.weight": torch.randn(4, 2),
            "lora_unet_q.alpha": torch.tensor(1.0),
            "count": torch.tensor([i]),
        }
        paths.append(tmp_path / f"{'bdac'[i]}.safetensors")
        save_file(tensors, paths[-1], {"ss_epoch": str(i), "sshs_model_hash": "old"})
        os.utime(paths[-1], (1000 + i, 1000 + i))
    return paths


def ema(files, **options):
    output = files[0].parent / "out.safetensors"
    report = Quiet()
    config = LoraEmaConfig(files=[str(f) for f in files], output_file=str(output), **options)
    run(config, report)
    return load_file(output), report


def expected(files, name, kept):
    total = load_file(files[0])[name].double()
    for path, beta in zip(files[1:], kept, strict=True):
        total = beta * total + (1 - beta) * load_file(path)[name].double()
    return total


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0.95, 0.95, 0.95]),
        ({"beta": 0.5}, [0.5, 0.5, 0.5]),
        ({"beta": 0.9, "beta2": 0.5}, [0.9, 0.7, 0.5]),
        ({"sigma_rel": 0.2}, [(1 - 1 / t) ** (GAMMA + 1) for t in (1, 2, 3)]),
    ],
)
def test_against_a_sum_written_out(files, options, kept):
    # Given out of order: the time of change decides.
    found, report = ema([files[2], files[0], files[3], files[1]], **options)
    for name in ("lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight"):
        wanted = expected(files, name, kept).to(found[name].dtype)
        torch.testing.assert_close(found[name], wanted)
    assert found["lora_unet_q.lora_down.weight"].dtype == torch.bfloat16
    assert found["lora_unet_q.alpha"] == 1 and found["count"] == 0
    assert [line.split(" | ")[0] for line in report.notes[1:5]] == [str(f) for f in files]


def test_the_order_given_when_asked_for(files):
    found, _ = ema(files[::-1], no_sort=True, beta=0.25)
    name = "lora_unet_q.lora_up.weight"
    wanted = expected(files[::-1], name, [0.25] * 3).float()
    torch.testing.assert_close(found[name], wanted)


def test_metadata_is_that_of_the_last_with_new_hashes(files):
    found, _ = ema(files)
    with safe_open(files[0].parent / "out.safetensors", "pt") as file:
        said = file.metadata()
    assert said["ss_epoch"] == "3" and said["sshs_model_hash"] != "old"
    assert said == with_hashes(found, said)


@pytest.mark.parametrize(
    ("sigma", "exponent"), [(0.1, 6.937), (0.15, 3.558), (0.2, 1.826), (0.25, 0.720)]
)
def test_published_exponents(sigma, exponent):
    assert gamma(sigma) == pytest.approx(exponent, abs=5e-4)


@pytest.mark.parametrize("sigma", [1e-300, 1e-9, 0.001, 0.03, 0.17, 0.28, 0.2886, 0.28867])
def test_exponents_of_the_whole_range_solve_the_equation(sigma):
    found = gamma(sigma)
    assert found >= 0
    if sigma > 1e-3 - 1e-9:
        s = sigma**-2
        root = max(np.roots([1, 7, 16 - s, 12 - s]).real)
        assert found == pytest.approx(root, rel=1e-6, abs=1e-9)
    kept = betas(LoraEmaConfig(files=["a", "b"], output_file="c", sigma_rel=sigma), 5)
    assert kept[0] == 0 and sum(weights_of(kept)) == pytest.approx(1)


@pytest.mark.parametrize("sigma", [0, -0.1, 12**-0.5, 0.5])
def test_a_width_that_no_power_function_has(sigma):
    with pytest.raises(ConfigError, match=r"less than 1/sqrt\(12\) = 0.2887"):
        LoraEmaConfig(files=["a", "b"], output_file="c", sigma_rel=sigma)


@pytest.mark.parametrize("sigma", [float("nan"), float("inf")])
def test_a_width_that_is_no_number(sigma):
    with pytest.raises(ValidationError, match="no finite number"):
        LoraEmaConfig(files=["a", "b"], output_file="c", sigma_rel=sigma)


def test_two_ways_at_once_and_one_file():
    with pytest.raises(ConfigError, match="two ways"):
        LoraEmaConfig(files=["a", "b"], output_file="c", sigma_rel=0.2, beta=0.9)
    with pytest.raises(ConfigError, match="One file has no average"):
        LoraEmaConfig(files=["a"], output_file="c")


def change(path, **changes):
    tensors = load_file(path)
    for name, tensor in changes.items():
        tensors[name.replace("__", ".")] = tensor
    save_file(tensors, path)


@pytest.mark.parametrize("odd", range(4))
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("other__lora_up__weight", torch.ones(2)),
        ("lora_unet_q__lora_up__weight", torch.ones(4, 3)),
    ],
)
def test_the_odd_file_is_named(files, odd, name, tensor):
    change(files[odd], **{name: tensor})
    with pytest.raises(CheckpointError) as raised:
        ema(files, no_sort=True)
    assert raised.value.what.startswith(f"{files[odd]} is unlike")
    assert name.replace("__", ".") in raised.value.what
    assert not (files[0].parent / "out.safetensors").exists()


def test_alpha_must_agree(files):
    change(files[2], lora_unet_q__alpha=torch.tensor(4.0))
    with pytest.raises(CheckpointError, match=r"'lora_unet_q.alpha' is 4 in .*a.safetensors and 1"):
        ema(files)


def test_numbers_that_are_not_finite(files):
    change(files[1], lora_unet_q__lora_up__weight=torch.full((4, 2), float("nan")))
    with pytest.raises(CheckpointError, match=r"d.safetensors: 'lora_unet_q.lora_up.weight'"):
        ema(files)


def test_no_file_is_overwritten(files):
    with pytest.raises(ConfigError, match="also read"):
        run(LoraEmaConfig(files=[str(f) for f in files], output_file=str(files[1])), Quiet())


def test_few_tensors_are_held(files, monkeypatch):
    """However many tensors there are, only a few exist at a time."""
    import musubi.lora.ema as module

    for path in files:
        save_file({f"lora_unet_{i:02}.lora_up.weight": torch.randn(8) for i in range(40)}, path)
    alive, most, average = weakref.WeakSet(), [], module.average

    def counted(*given):
        made = average(*given)
        alive.add(made)
        most.append(len(alive))
        return made

    monkeypatch.setattr(module, "average", counted)
    ema(files)
    assert len(most) == 2 * 40 and max(most) <= 5
