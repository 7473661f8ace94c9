"""Files written here, in diffusers' own loader: they load, and give there what they give here."""

import pytest
import torch
from safetensors.torch import load_file

from musubi import registry
from musubi.lora.adapter import Adapters
from musubi.lora.files import FORMS, write_lora
from musubi.testing import twins

pytestmark = pytest.mark.parity
WAN = registry.find("wan")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_the_loader_of_the_pipeline(tmp_path, form):
    diffusers = pytest.importorskip("diffusers")
    dit = twins.build_twin(WAN.dit)
    made = Adapters.create(dit, WAN.dit.traits.lora, rank=2, alpha=1.0)
    torch.manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.2)
    path = tmp_path / "lora.safetensors"
    write_lora(path, made.tensors(), form=form, dtype=torch.float32, component=WAN.dit)
    theirs = twins.write_twin(WAN.dit, tmp_path, dialect="diffusers")
    shapes = {name: tensor.shape for name, tensor in load_file(theirs).items()}
    model = diffusers.WanTransformer3DModel(**config(shapes))
    model.load_state_dict(load_file(theirs))
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, transformer=model, vae=None, scheduler=None
    )
    before = {n: p.clone() for n, p in model.named_parameters()}
    pipe.load_lora_weights(str(path))
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    dialect = next(d for d in WAN.dit.dialects if d.name == "diffusers")
    after = dict(model.named_parameters())
    deltas = {f"{p}.weight": pair.delta() for p, pair in made.tensors().items()}
    for name, source in dialect.writing(deltas).items():
        delta = deltas.pop(source.names[0])
        torch.testing.assert_close(after[name] - before[name], delta, atol=1e-5, rtol=1e-4)
        before.pop(name)
    assert not deltas and all(torch.equal(after[n], tensor) for n, tensor in before.items())


def config(shapes):
    """What diffusers builds its network from, read from the shapes of its names."""
    width, channels, *patch = shapes["patch_embedding.weight"]
    head = 128
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // (patch[0] * patch[1] * patch[2]),
        "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
        "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
        "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
        "num_layers": len({n.split(".")[1] for n in shapes if n.startswith("blocks.")}),
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
    }
