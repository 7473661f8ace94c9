"""Adapters of the model that FramePack was trained from are read, fused layers taken apart."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.architectures.framepack import ARCHITECTURE
from musubi.cli import main
from musubi.errors import CheckpointError, ConfigError
from musubi.lora.adapter import Adapters
from musubi.lora.files import FORMS, architecture_of, read_lora, write_lora
from musubi.lora.info import describe
from musubi.testing import twins

# One layer of theirs → ours, in order, and how many rows of 128 each has.
PARTS = {
    "double_blocks.0.img_attn_qkv": [
        ("transformer_blocks.0.attn.to_q", 1),
        ("transformer_blocks.0.attn.to_k", 1),
        ("transformer_blocks.0.attn.to_v", 1),
    ],
    "double_blocks.1.txt_attn_qkv": [
        ("transformer_blocks.1.attn.add_q_proj", 1),
        ("transformer_blocks.1.attn.add_k_proj", 1),
        ("transformer_blocks.1.attn.add_v_proj", 1),
    ],
    "double_blocks.0.img_attn_proj": [("transformer_blocks.0.attn.to_out.0", 1)],
    "double_blocks.0.txt_attn_proj": [("transformer_blocks.0.attn.to_add_out", 1)],
    "double_blocks.0.img_mlp.fc1": [("transformer_blocks.0.ff.net.0.proj", 4)],
    "double_blocks.0.txt_mlp.fc2": [("transformer_blocks.0.ff_context.net.2", 1)],
    "double_blocks.1.img_mod.linear": [("transformer_blocks.1.norm1.linear", 6)],
    "single_blocks.1.linear1": [
        ("single_transformer_blocks.1.attn.to_q", 1),
        ("single_transformer_blocks.1.attn.to_k", 1),
        ("single_transformer_blocks.1.attn.to_v", 1),
        ("single_transformer_blocks.1.proj_mlp", 4),
    ],
    "single_blocks.0.linear2": [("single_transformer_blocks.0.proj_out", 1)],
    "single_blocks.0.modulation.linear": [("single_transformer_blocks.0.norm.linear", 3)],
}
INPUTS = {"img_mlp.fc2": 512, "txt_mlp.fc2": 512, "linear2": 640}


def pair(layer, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = 128 * sum(n for _, n in PARTS[layer])
    columns = next((n for end, n in INPUTS.items() if layer.endswith(end)), 128)
    return torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator)


def written(path, form, metadata=None):
    tensors = {}
    for seed, layer in enumerate(PARTS):
        down, up = pair(layer, seed)
        if form == "kohya":
            stem = f"lora_unet_{layer.replace('.', '_')}"
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            tensors[f"{stem}.alpha"] = torch.tensor(2.0)
        else:  # as diffusion-pipe writes them
            tensors |= {
                f"diffusion_model.{layer}.lora_A.weight": down,
                f"diffusion_model.{layer}.lora_B.weight": up,
            }
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize("metadata", [None, {"ss_base_model_version": "hunyuan_video"}])
@pytest.mark.parametrize("form", ["kohya", "diffusion-pipe"])
def test_fused_layers_are_taken_apart(tmp_path, form, metadata):
    path = written(tmp_path / "lora.safetensors", form, metadata)
    twin = twins.build_twin(ARCHITECTURE.dit)
    shapes = {name: tuple(t.shape) for name, t in twin.state_dict().items()}
    found = read_lora(path, ARCHITECTURE, shapes)
    assert not found.unknown
    expected = {}
    for seed, (layer, parts) in enumerate(PARTS.items()):
        down, up = pair(layer, seed)
        whole = up @ down * (0.5 if form == "kohya" else 1.0)
        rows = [128 * n for _, n in parts]
        expected |= dict(zip([name for name, _ in parts], whole.split(rows), strict=True))
    deltas = {name.removesuffix(".weight"): delta for name, delta in found.deltas.items()}
    assert set(deltas) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(deltas[name].matrix(), value, rtol=1e-4, atol=1e-4)


def test_such_a_file_still_belongs_to_the_model_it_was_made_for(tmp_path):
    path = written(tmp_path / "lora.safetensors", "kohya")
    assert architecture_of(path).name == "hunyuan_video"


def test_an_adapter_of_another_family_is_refused(tmp_path):
    wan = registry.find("wan").dit
    names = [n for n in twins.build_twin(wan).state_dict() if n.endswith("self_attn.q.weight")]
    tensors = {}
    for name in names:
        stem = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        tensors |= {
            f"{stem}.lora_down.weight": torch.ones(4, 8),
            f"{stem}.lora_up.weight": torch.ones(8, 4),
        }
    save_file(tensors, tmp_path / "wan.safetensors")
    with pytest.raises(CheckpointError, match="wan"):
        read_lora(tmp_path / "wan.safetensors", ARCHITECTURE)


OF_DIFFUSERS = {
    "num_attention_heads": 1, "attention_head_dim": 128, "num_layers": 2, "num_single_layers": 2,
    "num_refiner_layers": 1, "text_embed_dim": 32, "pooled_projection_dim": 16,
    "image_proj_dim": 16, "has_image_proj": True, "has_clean_x_embedder": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def own():
    """Matrices for every target layer."""
    dit = twins.build_twin(ARCHITECTURE.dit)
    made = Adapters.create(dit, ARCHITECTURE.dit.traits.lora, rank=2, alpha=1.0)
    torch.manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.2)
    return made.tensors()


@pytest.mark.parametrize("form", FORMS)
def test_names_that_two_models_share_are_told_plainly(tmp_path, form, own):
    """Without metadata: `lora info` names both, and what has to know asks."""
    path = tmp_path / "lora.safetensors"
    write_lora(path, own, form=form, dtype=torch.float32, component=ARCHITECTURE.dit)
    assert describe(path)["architecture"] == "framepack or hunyuan_video"
    with pytest.raises(ConfigError, match="those of framepack and of hunyuan_video") as refused:
        architecture_of(path)
    assert "--arch framepack or --arch hunyuan_video" in str(refused.value)
    told = {"ss_base_model_version": "framepack"}
    write_lora(path, own, form=form, dtype=torch.float32, component=ARCHITECTURE.dit, metadata=told)
    assert architecture_of(path).name == describe(path)["architecture"] == "framepack"


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", ["own", "relative"])
def test_comfyui_nodes_load_what_convert_writes(tmp_path, own, source):
    """ComfyUI's nodes for FramePack rename a file by diffusers' converter, then load it by diffusers."""
    import diffusers
    from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers

    given, made = tmp_path / "given.safetensors", tmp_path / "made.safetensors"
    metadata = {"ss_base_model_version": "framepack"}
    if source == "own":
        write_lora(
            given, own, form="kohya", dtype=torch.float32, component=ARCHITECTURE.dit,
            metadata=metadata,
        )  # fmt: skip
    else:
        written(given, "diffusion-pipe")
    with pytest.raises(SystemExit) as end:
        command = (
            f"lora convert --input {given} --output {made} --target diffusers --arch framepack"
        )
        main(command.split())
    assert not end.value.code
    model = diffusers.HunyuanVideoFramepackTransformer3DModel(**OF_DIFFUSERS)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    loaded = _convert_hunyuan_video_lora_to_diffusers(load_file(made))
    model.load_lora_adapter(loaded, adapter_name="a")
    model.fuse_lora()
    model.unload_lora()
    after = dict(model.named_parameters())
    deltas = {n: d.matrix() for n, d in read_lora(given, ARCHITECTURE).deltas.items()}
    assert deltas
    for name, delta in deltas.items():
        torch.testing.assert_close(after[name] - before[name], delta, atol=1e-4, rtol=1e-3)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == set(deltas)
