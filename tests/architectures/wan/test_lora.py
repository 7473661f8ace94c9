"""LoRA files of models with an image encoder: their targets, and that diffusers loads them whole."""

import pytest
import torch
from safetensors.torch import load_file

from musubi.architectures.wan import ARCHITECTURE
from musubi.lora.adapter import Adapters
from musubi.lora.files import FORMS, write_lora
from musubi.testing import twins

DIT = ARCHITECTURE.dit
TASK = ARCHITECTURE.task("i2v")


@pytest.fixture(scope="module")
def made():
    dit = twins.build_twin(DIT, numbers=twins.numbers_for(TASK))
    adapters = Adapters.create(dit, DIT.traits.lora, rank=2, alpha=1.0)
    torch.manual_seed(0)
    for parameter in adapters.parameters():
        parameter.data.normal_(std=0.2)
    return adapters


def test_targets_are_the_attention_and_the_feed_forward_layers(made):
    names = {
        name.rsplit(".", 1)[0] if name.endswith(".weight") else name for name in made.tensors()
    }
    assert len(names) == 2 * 12
    assert "blocks.0.cross_attn.k_img" in names and "blocks.1.cross_attn.v_img" in names
    assert not any("img_emb" in name or "norm" in name for name in names)


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_diffusers_loads_them_whole(tmp_path, form, made):
    import diffusers

    theirs = load_file(
        twins.write_twin(DIT, tmp_path, dialect="diffusers", numbers=twins.numbers_for(TASK))
    )
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, in_channels=36, out_channels=16,
        text_dim=32, ffn_dim=256, num_layers=2, image_dim=80, added_kv_proj_dim=128,
    )  # fmt: skip
    model.load_state_dict(theirs)
    pipe = diffusers.WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, transformer=model, vae=None, scheduler=None,
        image_processor=None, image_encoder=None,
    )  # fmt: skip
    path = tmp_path / "lora.safetensors"
    write_lora(path, made.tensors(), form=form, dtype=torch.float32, component=DIT)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    pipe.load_lora_weights(str(path))
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    after = dict(model.named_parameters())
    dialect = next(d for d in DIT.dialects if d.name == "diffusers")
    deltas = {name: pair.matrix() for name, pair in made.tensors().items()}
    for name, source in dialect.writing(deltas).items():
        delta = deltas.pop(source.names[0])
        torch.testing.assert_close(after[name] - before[name], delta, atol=1e-5, rtol=1e-4)
    assert not deltas
