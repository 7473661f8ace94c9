"""The same LoRA in the spelling of every tool, and what distilled LoRAs hold beside pairs."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.config.lora import LoraConvertConfig, LoraMergeConfig
from musubi.config.options import for_architecture
from musubi.errors import CheckpointError
from musubi.lora import convert, merge
from musubi.lora.adapter import Adapters
from musubi.lora.delta import Pair
from musubi.lora.files import laid_out, read_lora
from musubi.lora.merge import merging_transform
from musubi.plugin import Quiet
from musubi.testing import twins

WAN, HUNYUAN = registry.find("wan"), registry.find("hunyuan_video")


def filled(architecture):
    dit = architecture.dit
    made = Adapters.create(twins.build_twin(dit), dit.traits.lora, rank=2, alpha=1.0)
    torch.manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.1)
    return made.tensors()


@pytest.fixture(scope="module")
def wan():
    return filled(WAN)


@pytest.fixture(scope="module")
def hunyuan():
    return filled(HUNYUAN)


def replaced(*pairs):
    def rename(name):
        for old, new in pairs:
            name = name.replace(old, new)
        return name

    return lambda tensors: {rename(n): t for n, t in tensors.items()}


def joined(prefix, strip="transformer."):
    """Dots of the layer's name as underscores, behind a prefix."""

    def rename(name):
        stem, word = name.removeprefix(strip).split(".lora_", 1)
        word = {"A.weight": "down.weight", "B.weight": "up.weight"}[word]
        return f"{prefix}{stem.replace('.', '_')}.lora_{word}"

    return lambda tensors: {rename(n): t for n, t in tensors.items()}


SPELLINGS = {
    "diffsynth": ("comfy", replaced(("diffusion_model.", "pipe.dit."))),
    "lora.down": ("comfy", replaced((".lora_A.", ".lora.down."), (".lora_B.", ".lora.up."))),
    "old diffusers": (
        "diffusers",
        replaced((".lora_A.", "_lora.down."), (".lora_B.", "_lora.up.")),
    ),
    "lora_linear_layer": (
        "diffusers",
        replaced((".lora_A.", ".lora_linear_layer.down."), (".lora_B.", ".lora_linear_layer.up.")),
    ),
    "peft in memory": (
        "comfy",
        replaced(
            ("diffusion_model.", "base_model.model."),
            (".lora_A.", ".lora_A.default."),
            (".lora_B.", ".lora_B.default."),
        ),
    ),
    "without weight": (
        "comfy",
        replaced((".lora_A.weight", ".lora_A"), (".lora_B.weight", ".lora_B")),
    ),
    "Fun": ("kohya", replaced(("lora_unet_", "lora_unet__"))),
    "OneTrainer": ("diffusers", joined("lora_transformer_")),
    "SimpleTuner": ("diffusers", joined("lycoris_")),
    "bare": ("comfy", replaced(("diffusion_model.", ""))),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_every_spelling(wan, hunyuan, name, spelling, tmp_path):
    deltas = {"wan": wan, "hunyuan_video": hunyuan}[name]
    architecture = registry.find(name)
    form, change = SPELLINGS[spelling]
    tensors = change(laid_out(deltas, form, architecture.dit))
    save_file({n: t.clone() for n, t in tensors.items()}, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors", architecture)
    assert not file.unknown and file.deltas.keys() == deltas.keys()
    for parameter, delta in deltas.items():
        torch.testing.assert_close(file.deltas[parameter].matrix(), delta.matrix())


def test_the_open_model_initiatives_names(hunyuan, tmp_path):
    """Parts of fused layers by number, and the first layer of an MLP as fc0, as OneTrainer has it."""
    tensors = {}
    numbers = {"img_attn_qkv": (1, 1, 1), "txt_attn_qkv": (1, 1, 1), "linear1": (1, 1, 1, 4)}
    for parameter, delta in hunyuan.items():
        stem = f"transformer.{parameter.removesuffix('.weight')}".replace("fc1", "fc0")
        stem = stem.replace("mlp.fc2", "mlp.fc2")
        ratio = numbers.get(stem.rpartition(".")[2])
        ups = [delta.up]
        if ratio:
            unit = delta.up.shape[0] // sum(ratio)
            ups = delta.up.split([unit * r for r in ratio])
        for i, up in enumerate(ups):
            part = f"{stem}.{i}" if ratio else stem
            tensors[f"{part}.lora_down.weight"] = delta.down.clone()
            tensors[f"{part}.lora_up.weight"] = up.clone()
            tensors[f"{part}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors", HUNYUAN)
    assert not file.unknown and file.deltas.keys() == hunyuan.keys()
    for parameter, delta in hunyuan.items():
        torch.testing.assert_close(file.deltas[parameter].matrix(), delta.matrix())
        assert file.deltas[parameter].rank == 2


def test_an_alpha_of_zero_is_no_effect(wan, tmp_path):
    tensors = laid_out(wan)
    tensors |= {n: torch.zeros(()) for n in tensors if n.endswith(".alpha")}
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors", WAN)
    assert all(not delta.matrix().any() for delta in file.deltas.values())


# A distilled LoRA: pairs, biases, norms, modulations, a convolution's pair, and a whole difference.
def distilled(dit):
    torch.manual_seed(1)
    tensors, expected = {}, {}
    for name, parameter in dit.named_parameters():
        noise = 0.1 * torch.randn(parameter.shape)
        stem, _, leaf = name.rpartition(".")
        key = f"diffusion_model.{stem}"
        if leaf == "weight" and name == "patch_embedding.weight":
            down = 0.1 * torch.randn(2, *parameter.shape[1:])
            up = torch.randn(parameter.shape[0], 2, 1, 1, 1)
            tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
            noise = (up.flatten(1) @ down.flatten(1)).reshape(parameter.shape)
        elif leaf == "weight" and parameter.ndim == 2 and "head" not in name:
            down, up = 0.1 * torch.randn(2, parameter.shape[1]), torch.randn(parameter.shape[0], 2)
            tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
            noise = up @ down
        elif leaf == "weight":
            tensors[f"{key}.diff"] = noise
        elif leaf == "bias":
            tensors[f"{key}.diff_b"] = noise
        else:
            tensors[f"{key}.diff_m"] = noise
        expected[name] = noise
    return tensors, expected


@pytest.fixture(scope="module")
def distilled_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "distilled.safetensors"
    tensors, expected = distilled(twins.build_twin(WAN.dit))
    save_file(tensors, path)
    return path, expected


def test_everything_in_a_distilled_lora_is_used(distilled_file):
    path, expected = distilled_file
    file = read_lora(path, WAN)
    assert not file.unknown and file.complaint() is None
    assert file.deltas.keys() == expected.keys()
    merging = merging_transform([(file, 0.5)])
    for name, parameter in twins.build_twin(WAN.dit).named_parameters():
        found = merging(name, parameter.detach().clone()) - parameter
        torch.testing.assert_close(found, 0.5 * expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dialect", [d.name for d in WAN.dit.dialects])
def test_it_is_merged_into_every_layout(distilled_file, tmp_path, dialect):
    path, expected = distilled_file
    dit = twins.write_twin(WAN.dit, tmp_path, dialect=dialect)
    model = for_architecture(LoraMergeConfig, WAN, "lora merge")
    config = model(
        dit=str(dit),
        lora_weight=[str(path)],
        save_merged_model=str(tmp_path / "out.safetensors"),
        device="cpu",
    )
    report = Quiet()
    merge.run(config, WAN, report)
    before, after = load_file(dit), load_file(tmp_path / "out.safetensors")
    layout = next(d for d in WAN.dit.dialects if d.name == dialect)
    assert not report.warnings
    for theirs, source in layout.writing(expected).items():
        torch.testing.assert_close(
            after[theirs] - before[theirs], expected[source.names[0]], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("target", ["comfy", "kohya"])
def test_it_is_converted_without_loss(distilled_file, tmp_path, target):
    path, expected = distilled_file
    out = tmp_path / "b.safetensors"
    convert.run(LoraConvertConfig(input=str(path), output=str(out), target=target), Quiet())
    file = read_lora(out, WAN)
    assert not file.unknown and file.deltas.keys() == expected.keys()
    for name, delta in file.deltas.items():
        torch.testing.assert_close(delta.matrix(), expected[name])


def test_a_form_that_cannot_say_it_is_refused_unless_asked_for(distilled_file, tmp_path):
    path, _ = distilled_file
    out = tmp_path / "b.safetensors"
    options = {"input": str(path), "output": str(out), "target": "diffusers"}
    with pytest.raises(CheckpointError, match="diffusers reads low-rank pairs alone"):
        convert.run(LoraConvertConfig(**options), Quiet())
    report = Quiet()
    convert.run(LoraConvertConfig(**options, allow_lossy=True), report)
    assert "Left out 17 changes" in report.warnings[0]
    kept = read_lora(out, WAN).deltas
    assert "blocks.0.ffn.0.weight" in kept and "blocks.0.ffn.0.bias" in kept
    assert "blocks.0.norm3.weight" not in kept


def test_layers_of_relatives_are_known(tmp_path):
    """A file for image to video holds layers that no text-to-video network has."""
    stem = "diffusion_model.blocks.7.cross_attn.k_img"
    pairs = {"blocks.7.cross_attn.k": Pair(torch.randn(2, 4), torch.randn(4, 2))}
    tensors = laid_out(pairs, "comfy")
    tensors[f"{stem}.lora_A.weight"] = torch.randn(2, 4)
    tensors[f"{stem}.lora_B.weight"] = torch.randn(4, 2)
    tensors["diffusion_model.img_emb.proj.1.diff_b"] = torch.randn(4)
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors", WAN)
    assert not file.unknown
    assert {"blocks.7.cross_attn.k_img.weight", "img_emb.proj.1.bias"} <= file.deltas.keys()


def test_another_size_is_refused_by_name(tmp_path):
    pairs = {"blocks.0.ffn.0": Pair(torch.randn(2, 5120), torch.randn(13824, 2))}
    save_file(laid_out(pairs), tmp_path / "x.safetensors")
    shapes = {"blocks.0.ffn.0.weight": (8960, 1536)}
    with pytest.raises(CheckpointError, match=r"x.safetensors is of another size") as raised:
        read_lora(tmp_path / "x.safetensors", WAN, shapes)
    assert "(13824, 5120)" in raised.value.what and "(8960, 1536)" in raised.value.what


@pytest.mark.parametrize("kind", ["hada", "dora", "pair"])
def test_parts_of_a_fused_layer_of_other_kinds(kind, tmp_path):
    """They are put below each other: of each row what its own part says."""
    layer, rows = "double_blocks.0.img_attn_qkv.weight", 4
    torch.manual_seed(0)
    base = torch.randn(3 * rows, 6)
    tensors, expected = {}, []
    for i, part in enumerate(("to_q", "to_k", "to_v")):
        stem = f"transformer.transformer_blocks.0.attn.{part}"
        own = base[i * rows : (i + 1) * rows]
        if kind == "hada":
            factors = [torch.randn(*s) for s in ((rows, 2), (2, 6), (rows, 2), (2, 6))]
            for n, t in zip(("w1_a", "w1_b", "w2_a", "w2_b"), factors, strict=True):
                tensors[f"{stem}.hada_{n}"] = t
            expected.append(own + (factors[0] @ factors[1]) * (factors[2] @ factors[3]))
        elif kind == "dora":
            down, up, size = torch.randn(2, 6), torch.randn(rows, 2), torch.rand(rows) + 1
            tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = down, up
            tensors[f"{stem}.lora_magnitude_vector"] = size
            new = own + up @ down
            expected.append(new / new.norm(dim=1, keepdim=True) * size[:, None])
        else:
            down, up = torch.randn(2, 6), torch.randn(rows, 2)
            tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = down, up
            expected.append(own + up @ down)
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors", HUNYUAN, {layer: (3 * rows, 6)})
    found = merging_transform([(file, 1.0)])(layer, base.clone())
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)
    if kind != "pair":
        out = laid_out(file.deltas, "diffusers", HUNYUAN.dit) if kind == "dora" else {}
        assert all(torch.allclose(out[n], tensors[n]) for n in out)
