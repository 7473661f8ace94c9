"""The table of docs/lora.md: which form of which tool is read here, in ComfyUI and in diffusers.

Its cells come from here: what is read by reading, what diffusers loads by its own loaders, what ComfyUI
loads by the rules in `musubi.lora.programs`. `python -m tests.lora.test_form_table` writes it anew.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.lora.adapter import Adapters
from musubi.lora.files import laid_out, read_lora
from musubi.lora.fresh import Kind
from musubi.lora.keys import parsed
from musubi.lora.verify import judge
from musubi.testing import twins

PAGE = Path(__file__).parents[2] / "docs" / "lora.md"
WAN, HUNYUAN = registry.find("wan"), registry.find("hunyuan_video")
BEGIN, END = "<!-- forms -->", "<!-- /forms -->"


def deltas(architecture, kind="lora"):
    dit = architecture.dit
    made = Adapters.create(
        twins.build_twin(dit), dit.traits.lora, rank=2, alpha=1.0, kind=Kind(name=kind)
    )
    return made.tensors()


def renamed(form, *pairs, kind="lora"):
    def tensors(architecture):
        found = {}
        for name, tensor in laid_out(deltas(architecture, kind), form, architecture.dit).items():
            for old, new in pairs:
                name = re.sub(old, new, name)
            found[name] = tensor.clone()
        return found

    return tensors


def underscored(prefix):
    def tensors(architecture):
        found = {}
        for name, tensor in laid_out(deltas(architecture), "diffusers", architecture.dit).items():
            stem, letter = re.fullmatch(r"transformer\.(.+)\.lora_([AB])\.weight", name).groups()
            word = {"A": "down", "B": "up"}[letter]
            found[f"{prefix}{stem.replace('.', '_')}.lora_{word}.weight"] = tensor.clone()
            found[f"{prefix}{stem.replace('.', '_')}.alpha"] = torch.tensor(1.0)
        return found

    return tensors


def distilled(architecture):
    """Pairs of all linear layers, with differences of biases, norms and modulations beside them."""
    found = {}
    twin = twins.build_twin(architecture.dit)
    linear = {n for n, m in twin.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, parameter in twin.named_parameters():
        stem, _, leaf = name.rpartition(".")
        key = f"diffusion_model.{stem}"
        if leaf == "bias":
            found[f"{key}.diff_b"] = torch.ones_like(parameter)
        elif leaf == "weight" and stem in linear:
            found[f"{key}.lora_down.weight"] = torch.ones(2, parameter.shape[1])
            found[f"{key}.lora_up.weight"] = torch.ones(parameter.shape[0], 2)
        elif leaf == "weight" and "norm" in name:
            found[f"{key}.diff"] = torch.ones_like(parameter)
        elif leaf == "modulation":
            found[f"{key}.diff_m"] = torch.ones_like(parameter)
    return found


def with_convolution(architecture):
    """The same, with a pair for the convolution that makes patches."""
    found = distilled(architecture)
    for name, module in twins.build_twin(architecture.dit).named_modules():
        if isinstance(module, torch.nn.Conv3d):
            shape = module.weight.shape
            found[f"diffusion_model.{name}.lora_down.weight"] = torch.ones(2, *shape[1:])
            found[f"diffusion_model.{name}.lora_up.weight"] = torch.ones(shape[0], 2, 1, 1, 1)
    return found


FORMS = {
    "kohya, musubi-tuner: `lora_unet_…lora_down`": renamed("kohya"),
    "ComfyUI, diffusion-pipe: `diffusion_model.…lora_A`": renamed("comfy"),
    "diffusers: `transformer.…lora_A`": renamed("diffusers"),
    "diffusers before peft: `transformer.…_lora.down`": renamed(
        "diffusers", (r"\.lora_A\.", "_lora.down."), (r"\.lora_B\.", "_lora.up.")
    ),
    "peft: `base_model.model.…lora_A`": renamed("comfy", ("^diffusion_model", "base_model.model")),
    "DiffSynth: `pipe.dit.…lora_A.default`": renamed(
        "comfy", ("^diffusion_model", "pipe.dit"), (r"lora_([AB])\.", r"lora_\1.default.")
    ),
    "OneTrainer: `lora_transformer_…lora_down`": underscored("lora_transformer_"),
    "SimpleTuner: `lycoris_…lora_down`": underscored("lycoris_"),
    "Fun rewards: `lora_unet__…lora_down`": renamed("kohya", ("^lora_unet_", "lora_unet__")),
    "distilled: `diffusion_model.…lora_down`, `diff`, `diff_b`, `diff_m`": distilled,
    "distilled, with a convolution's pair": with_convolution,
    "LoHa: `…hada_w1_a`": renamed("comfy", kind="loha"),
    "LoKr: `…lokr_w1`": renamed("comfy", kind="lokr"),
    "DoRA: `…dora_scale`": renamed("comfy", kind="dora"),
    "DoRA of diffusers: `…lora_magnitude_vector`": renamed("diffusers", kind="dora"),
    "OFT: `…oft_blocks`": renamed("comfy", kind="oft"),
    "full: `…diff`": renamed("comfy", kind="full"),
}


def word(used: int, of: int) -> str:
    return "all" if used == of else "none" if not used else f"{used} of {of}"


def here(architecture, tensors) -> str:
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, f"{folder}/x.safetensors")
        file = read_lora(f"{folder}/x.safetensors", architecture)
    return word(len(tensors) - len(file.unknown), len(tensors))


def told(architecture, tensors) -> dict[str, str]:
    return {v.program: word(len(v.loads), len(tensors)) for v in judge(architecture, list(tensors))}


def row(name: str) -> str:
    cells = [name]
    for architecture in (WAN, HUNYUAN):
        tensors = FORMS[name](architecture)
        found = told(architecture, tensors)
        cells += [here(architecture, tensors), found["ComfyUI"], found["diffusers"]]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    titles = [f"{a.title}: {p}" for a in (WAN, HUNYUAN) for p in ("here", "ComfyUI", "diffusers")]
    lines = [f"| form | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    return "\n".join([*lines, *map(row, FORMS)])


def test_the_page_has_this_table():
    text = PAGE.read_text(encoding="utf-8")
    found = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert found == table(), "Run `python -m tests.lora.test_form_table`."


def test_all_of_it_is_read_here():
    for name, make in FORMS.items():
        for architecture in (WAN, HUNYUAN):
            assert here(architecture, make(architecture)) == "all", name


@pytest.fixture(scope="module")
def wan_pipe(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    from tests.lora.test_diffusers_loads import config

    theirs = twins.write_twin(WAN.dit, tmp_path_factory.mktemp("twin"), dialect="diffusers")
    shapes = {name: tensor.shape for name, tensor in load_file(theirs).items()}

    def made():
        return diffusers.WanPipeline(
            tokenizer=None,
            text_encoder=None,
            transformer=diffusers.WanTransformer3DModel(**config(shapes)),
            vae=None,
            scheduler=None,
        )

    return made


@pytest.mark.parity
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_what_diffusers_loads_of_one_network(name, wan_pipe, tmp_path):
    """Its layers that have a LoRA afterwards are those whose pairs are said to load."""
    tensors = FORMS[name](WAN)
    save_file(tensors, tmp_path / "x.safetensors")
    said = next(v for v in judge(WAN, list(tensors)) if v.program == "diffusers")
    loaded = {n for n in said.loads if parsed(n)[1] == "down"}
    pipe = wan_pipe()
    try:
        pipe.load_lora_weights(str(tmp_path / "x.safetensors"))
    except Exception as error:  # of whatever kind: the file is refused
        assert not said.loads, error
        return
    layers = [m for _, m in pipe.transformer.named_modules() if getattr(m, "lora_A", None)]
    assert len(layers) == len(loaded)
    biases = sum(1 for m in layers if any(b.bias is not None for b in m.lora_B.values()))
    assert bool(biases) == any(n.endswith(("diff_b", "lora_B.bias")) for n in said.loads)
    magnitudes = [m for m in layers if len(getattr(m, "lora_magnitude_vector", ()))]
    assert bool(magnitudes) == any("magnitude" in n for n in said.loads)


@pytest.mark.parity
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_what_diffusers_loads_of_a_network_with_fused_layers(name, tmp_path):
    """Its converter has the width of the released model in it: there names alone are compared."""
    diffusers = pytest.importorskip("diffusers")
    tensors = FORMS[name](HUNYUAN)
    said = next(v for v in judge(HUNYUAN, list(tensors)) if v.program == "diffusers")
    loaded = {n for n in said.loads if parsed(n)[1] == "down"}
    model = diffusers.HunyuanVideoTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=128,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=16,
    )
    if any("img_attn_qkv" in n for n in tensors):
        wide = {
            n: torch.zeros(t.shape[0] * 24, *t.shape[1:]) if "linear1" in n and t.ndim else t
            for n, t in tensors.items()
        }
        try:
            found = diffusers.HunyuanVideoPipeline.lora_state_dict(wide)
            assert all("lora" in key for key in found), "refused by load_lora_weights"
        except Exception as error:  # of whatever kind: the file is refused
            assert not said.loads, error
            return
        stems = {k.partition(".lora_A")[0] for k in found if ".lora_A" in k}
        modules = {f"transformer.{n}" for n, _ in model.named_modules()}
        assert bool(stems & modules) == bool(loaded)
        assert not loaded or stems <= modules
        return
    save_file(tensors, tmp_path / "x.safetensors")
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=model,
        vae=None,
        scheduler=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    try:
        pipe.load_lora_weights(str(tmp_path / "x.safetensors"))
    except Exception as error:  # of whatever kind: the file is refused
        assert not said.loads, error
        return
    layers = [m for _, m in model.named_modules() if getattr(m, "lora_A", None)]
    assert len(layers) == len(loaded)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
