"""LoRAs of one network used on another that has its layers: fused there, apart here."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.architectures.framepack.component import DIT
from musubi.errors import CheckpointError
from musubi.lora.adapter import Adapters
from musubi.lora.files import laid_out, read_lora, write_lora
from musubi.lora.fresh import Kind
from musubi.lora.merge import merging_transform
from musubi.lora.verify import best_form, judge
from musubi.testing import twins

HUNYUAN = registry.find("hunyuan_video")


class FramePack:
    """Its denoiser alone."""

    name, title, variants, dit = "framepack", "FramePack", (), DIT


@pytest.fixture(scope="module")
def shapes():
    return {n: tuple(p.shape) for n, p in twins.build_twin(DIT).named_parameters()}


@pytest.mark.parametrize("form", ["kohya", "comfy"])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha"])
def test_a_lora_with_fused_layers(tmp_path, shapes, form, kind):
    made = Adapters.create(
        twins.build_twin(HUNYUAN.dit),
        HUNYUAN.dit.traits.lora,
        rank=2,
        alpha=1.0,
        kind=Kind(name=kind),
    )
    torch.manual_seed(0)
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    deltas, path = made.tensors(), tmp_path / "x.safetensors"
    said = {"ss_base_model_version": "hunyuan_video"} if form == "kohya" else {}
    write_lora(path, deltas, form=form, dtype=torch.float32, metadata=said)
    file = read_lora(path, FramePack, shapes)
    assert not file.unknown and "is a LoRA for HunyuanVideo" in file.notes[0]
    merging = merging_transform([(file, 1.0)])
    torch.manual_seed(1)
    width = 128
    for block in (0, 1):
        base = torch.randn(7 * width, width)
        expected = base + deltas[f"single_blocks.{block}.linear1.weight"].change(base)
        parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        sizes = (width, width, width, 4 * width)
        for part, rows, wanted in zip(parts, base.split(sizes), expected.split(sizes), strict=True):
            name = f"single_transformer_blocks.{block}.{part}.weight"
            torch.testing.assert_close(merging(name, rows.clone()), wanted, atol=1e-5, rtol=1e-5)
    assert len(file.deltas) == 2 * 12 + 2 * 5 and set(file.deltas) <= set(shapes)


def test_a_lora_of_no_relative_is_refused(tmp_path, shapes):
    wan = registry.find("wan")
    made = Adapters.create(twins.build_twin(wan.dit), wan.dit.traits.lora, rank=2)
    write_lora(tmp_path / "x.safetensors", made.tensors())
    with pytest.raises(CheckpointError, match=r"not a LoRA for FramePack.*seems to be for wan"):
        read_lora(tmp_path / "x.safetensors", FramePack, shapes)


def test_a_relative_of_another_size_is_refused(tmp_path, shapes):
    pairs = {}
    for block in range(2):
        stem = f"diffusion_model.double_blocks.{block}.img_attn_proj"
        pairs[f"{stem}.lora_A.weight"] = torch.randn(2, 3072)
        pairs[f"{stem}.lora_B.weight"] = torch.randn(3072, 2)
    save_file(pairs, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x.safetensors is of another size"):
        read_lora(tmp_path / "x.safetensors", FramePack, shapes)


def test_what_is_said_of_a_network_that_only_diffusers_has(tmp_path):
    made = Adapters.create(twins.build_twin(DIT), DIT.traits.lora, rank=2, alpha=1.0)
    deltas = made.tensors()
    (only,) = judge(FramePack, list(laid_out(deltas, "diffusers", DIT)))
    assert only.program == "diffusers" and not only.ignores
    (only,) = judge(FramePack, list(laid_out(deltas)))
    assert not only.loads
    assert best_form(FramePack, deltas) == ("kohya", 0.0)
    assert best_form(FramePack, deltas, ("comfy", "diffusers")) == ("diffusers", 1.0)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_its_form_of_diffusers_in_the_loader_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    made = Adapters.create(twins.build_twin(DIT), DIT.traits.lora, rank=2, alpha=1.0)
    path = tmp_path / "x.safetensors"
    write_lora(path, made.tensors(), form="diffusers", component=DIT)
    model = diffusers.HunyuanVideoFramepackTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=128,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=16,
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    )
    pipe = diffusers.HunyuanVideoFramepackPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=model,
        vae=None,
        scheduler=None,
        text_encoder_2=None,
        tokenizer_2=None,
        image_encoder=None,
        feature_extractor=None,
    )
    pipe.load_lora_weights(str(path))
    layers = [n for n, m in model.named_modules() if getattr(m, "lora_A", None)]
    assert 2 * len(layers) == len(load_file(path))
