"""Files written here, in diffusers' own loader: they load, and give there what they give here."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.lora.adapter import Adapters
from musubi.lora.files import FORMS, laid_out, write_lora
from musubi.lora.verify import judge
from musubi.testing import twins

pytestmark = pytest.mark.parity
WAN = registry.find("wan")


@pytest.fixture(scope="module")
def made():
    dit = twins.build_twin(WAN.dit)
    made = Adapters.create(dit, WAN.dit.traits.lora, rank=2, alpha=1.0)
    torch.manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.2)
    return made


@pytest.fixture
def pipe(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = twins.write_twin(WAN.dit, tmp_path, dialect="diffusers")
    shapes = {name: tensor.shape for name, tensor in load_file(theirs).items()}
    model = diffusers.WanTransformer3DModel(**config(shapes))
    model.load_state_dict(load_file(theirs))
    return diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, transformer=model, vae=None, scheduler=None
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_the_loader_of_the_pipeline(tmp_path, form, made, pipe):
    path = tmp_path / "lora.safetensors"
    write_lora(path, made.tensors(), form=form, dtype=torch.float32, component=WAN.dit)
    model = pipe.transformer
    before = {n: p.clone() for n, p in model.named_parameters()}
    pipe.load_lora_weights(str(path))
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    dialect = next(d for d in WAN.dit.dialects if d.name == "diffusers")
    after = dict(model.named_parameters())
    deltas = {name: pair.matrix() for name, pair in made.tensors().items()}
    for name, source in dialect.writing(deltas).items():
        delta = deltas.pop(source.names[0])
        torch.testing.assert_close(after[name] - before[name], delta, atol=1e-5, rtol=1e-4)
        before.pop(name)
    assert not deltas and all(torch.equal(after[n], tensor) for n, tensor in before.items())


def without(*parts):
    return lambda tensors: {n: t for n, t in tensors.items() if not any(p in n for p in parts)}


def renamed(old, new):
    return lambda tensors: {n.replace(old, new): t for n, t in tensors.items()}


def with_pair(stem, down="lora_down", up="lora_up"):
    def added(tensors):
        more = {f"{stem}.{down}.weight": torch.ones(2, 4), f"{stem}.{up}.weight": torch.ones(4, 2)}
        return {**tensors, **more}

    return added


def with_alpha(tensors):
    alphas = {n.partition(".lora_")[0] + ".alpha": torch.tensor(2.0) for n in tensors}
    return {**tensors, **alphas}


def as_down(tensors):
    return renamed("lora_B", "lora_up")(renamed("lora_A", "lora_down")(tensors))


CASES = {
    "kohya": ("kohya", dict),
    "kohya without a layer": ("kohya", without("blocks_1_ffn_2")),
    "kohya without the first block": ("kohya", without("blocks_0")),
    "kohya without the last block": ("kohya", without("blocks_1")),
    "kohya without alpha": ("kohya", without("blocks_0_ffn_0.alpha")),
    "kohya with the head": ("kohya", with_pair("lora_unet_head_head")),
    "kohya with a text encoder": ("kohya", with_pair("lora_te_layers_0_q")),
    "comfy": ("comfy", dict),
    "comfy without a layer": ("comfy", without("blocks.1.ffn.2")),
    "comfy with a stranger": ("comfy", with_pair("diffusion_model.x", "lora_A", "lora_B")),
    "comfy called down": ("comfy", lambda t: with_alpha(as_down(t))),
    "comfy with alpha": ("comfy", with_alpha),
    "diffusers": ("diffusers", dict),
    "diffusers without a layer": ("diffusers", without("blocks.0.attn1.to_q")),
    "diffusers with a stranger": ("diffusers", with_pair("transformer.x", "lora_A", "lora_B")),
    "diffusers with alpha": ("diffusers", with_alpha),
    "diffusers called down": ("diffusers", as_down),
    "diffusers without a prefix": ("diffusers", renamed("transformer.", "")),
    "comfy without a prefix": ("comfy", renamed("diffusion_model.", "")),
    "comfy behind another prefix": ("comfy", renamed("diffusion_model.", "transformer.")),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_what_is_said_to_load_is_what_loads(tmp_path, case, made, pipe):
    form, change = CASES[case]
    tensors = change(laid_out(made.tensors(), form, WAN.dit))
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    said = next(v for v in judge(WAN, list(tensors)) if v.program == "diffusers")
    assert {*said.loads, *said.ignores, *said.unknown} == set(tensors)
    try:
        pipe.load_lora_weights(str(path))
    except Exception:  # of whatever kind: the file is refused
        assert not said.loads and said.why
        return
    layers = {n for n, m in pipe.transformer.named_modules() if getattr(m, "lora_A", None)}
    loaded = {n.partition(".lora_")[0].removesuffix(".alpha") for n in said.loads}
    assert len(layers) == len(loaded)


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
