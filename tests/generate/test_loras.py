"""LoRAs in a generation: merged, attached, several, narrowed, and saved into the model."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi.errors import CheckpointError, ConfigError


@pytest.fixture
def lora(tmp_path):
    """Write a LoRA for some of the toy's blocks."""

    def lora(name, blocks=(0, 1), scale=1.0):
        generator = torch.Generator().manual_seed(len(name))
        tensors = {}
        for i in blocks:
            stem = f"lora_unet_blocks_{i}"
            tensors[f"{stem}.lora_down.weight"] = torch.randn(2, 4, generator=generator)
            tensors[f"{stem}.lora_up.weight"] = torch.randn(4, 2, generator=generator) * scale
            tensors[f"{stem}.alpha"] = torch.tensor(1.0)
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        return str(path)

    return lora


@pytest.fixture
def make(go):
    def make(**given):
        (path,) = go(prompt="a", seed=1, output_type="latent", **given)
        return load_file(path)["latent"]

    return make


def test_merged_and_attached_agree(make, lora):
    plain, path = make(), lora("a")
    merged = make(lora_weight=[path])
    attached = make(lora_weight=[path], lora_mode="attach")
    assert not torch.allclose(plain, merged, rtol=1e-3)
    torch.testing.assert_close(merged, attached, rtol=1e-4, atol=1e-5)


KINDS = {
    "loha": {"w1_a": (4, 2), "w1_b": (2, 4), "w2_a": (4, 2), "w2_b": (2, 4)},
    "lokr": {"w1": (2, 2), "w2": (2, 2)},
    "dora": {},
    "oft": {"blocks": (2, 2, 2)},
    "full": {},
}


@pytest.fixture
def of_kind(tmp_path):
    """Write an adapter of a kind for the toy's two blocks."""

    def of_kind(kind):
        generator = torch.Generator().manual_seed(0)
        tensors = {}
        for i in (0, 1):
            stem = f"diffusion_model.blocks.{i}"
            word = {"loha": "hada", "lokr": "lokr", "oft": "oft"}.get(kind)
            for name, shape in KINDS[kind].items():
                tensors[f"{stem}.{word}_{name}"] = torch.randn(shape, generator=generator)
            if kind == "dora":
                tensors[f"{stem}.lora_A.weight"] = torch.randn(2, 4, generator=generator)
                tensors[f"{stem}.lora_B.weight"] = torch.randn(4, 2, generator=generator)
                tensors[f"{stem}.dora_scale"] = torch.rand(4, 1, generator=generator) + 0.5
            if kind == "full":
                tensors[f"{stem}.diff"] = torch.randn(4, 4, generator=generator)
        path = tmp_path / f"{kind}.safetensors"
        save_file(tensors, path)
        return str(path)

    return of_kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_merged_and_attached(make, lora, of_kind, kind):
    """Also beside another file, and at another strength."""
    files = [of_kind(kind), lora("a")]
    given = {"lora_weight": files, "lora_multiplier": [0.7, 1.0]}
    merged, attached = (make(**given, lora_mode=mode) for mode in ("merge", "attach"))
    torch.testing.assert_close(merged, attached, rtol=1e-4, atol=1e-5)
    turned = {"lora_weight": files[::-1], "lora_multiplier": [1.0, 0.7]}
    torch.testing.assert_close(merged, make(**turned), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged, make(lora_weight=files[1:]), rtol=1e-3)


@pytest.mark.parametrize("mode", ["merge", "attach"])
def test_strengths_by_block(make, lora, mode):
    whole, first = lora("a"), make(lora_weight=[lora("a")], include_patterns=["blocks_0"])
    found = make(lora_weight=[whole], lora_block_weights=["blocks.1=0"], lora_mode=mode)
    torch.testing.assert_close(found, first, rtol=1e-4, atol=1e-5)
    found = make(
        lora_weight=[whole], lora_block_weights=["0.5,0"], lora_multiplier=[2.0], lora_mode=mode
    )
    torch.testing.assert_close(found, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["merge", "attach"])
def test_another_size_is_refused_before_anything_is_loaded(make, lora, tmp_path, mode):
    tensors = {
        "lora_unet_blocks_0.lora_down.weight": torch.randn(2, 5),
        "lora_unet_blocks_0.lora_up.weight": torch.randn(5, 2),
    }
    save_file(tensors, tmp_path / "large.safetensors")
    with pytest.raises(CheckpointError, match=r"large.safetensors is of another size"):
        make(lora_weight=[lora("a"), str(tmp_path / "large.safetensors")], lora_mode=mode)


@pytest.mark.parametrize("mode", ["merge", "attach"])
def test_multipliers_go_by_position_and_default_to_one(make, lora, mode):
    a, b = lora("a"), lora("bb")
    both = make(lora_weight=[a, b], lora_mode=mode)
    spelt = make(lora_weight=[a, b], lora_multiplier=[1.0, 1.0], lora_mode=mode)
    first = make(lora_weight=[a, b], lora_multiplier=[1.0, 0.0], lora_mode=mode)
    assert torch.equal(both, spelt)
    torch.testing.assert_close(first, make(lora_weight=[a], lora_mode=mode))
    assert not torch.allclose(both, first, rtol=1e-3)


def test_patterns_narrow_a_file(make, lora):
    whole = lora("a")
    upper = make(lora_weight=[whole], include_patterns=["blocks_1"])
    torch.testing.assert_close(upper, make(lora_weight=[whole], exclude_patterns=[r"blocks_0"]))
    assert not torch.allclose(upper, make(lora_weight=[whole]), rtol=1e-3)


def test_patterns_that_leave_nothing_or_are_broken(make, lora):
    with pytest.raises(ConfigError, match=r"leave none of the 2 modules of .*a\.safetensors"):
        make(lora_weight=[lora("a")], include_patterns=["nothing"])
    with pytest.raises(ConfigError, match="not a regular expression"):
        make(lora_weight=[lora("a")], include_patterns=["("])


def test_a_lora_of_something_else_is_refused(make, lora):
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        make(lora_weight=[lora("x", blocks=(7, 8))])


def test_attached_once_in_a_batch(go, lora, tmp_path, make):
    path = tmp_path / "p.txt"
    path.write_text("a --d 1\na --d 1\n")
    weight = [lora("a")]
    made = go(from_file=str(path), output_type="latent", lora_weight=weight, lora_mode="attach")
    expected = make(lora_weight=weight, lora_mode="attach")
    assert all(torch.equal(load_file(p)["latent"], expected) for p in made)


def test_the_recipe_names_the_loras(go, lora):
    from musubi.generate.write import read_latents

    (path,) = go(prompt="a", output_type="latent", lora_weight=[lora("a")], lora_multiplier=[0.5])
    assert read_latents(path).recipe["loras"] == [{"file": "a.safetensors", "multiplier": 0.5}]


def test_the_merged_model_is_saved_and_generates_the_same(go, lora, make, tmp_path):
    path, merged = lora("a"), tmp_path / "merged.safetensors"
    go(lora_weight=[path], lora_multiplier=[0.7], save_merged_model=str(merged))
    torch.testing.assert_close(
        make(dit=str(merged)), make(lora_weight=[path], lora_multiplier=[0.7])
    )
