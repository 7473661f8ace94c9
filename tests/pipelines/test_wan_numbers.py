"""Wan through the command line, against numbers that other code or a formula gives."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from musubi import registry
from musubi.architectures.wan.dit import sinusoid
from musubi.cli import main
from musubi.lora.adapter import Adapters
from musubi.lora.files import write_lora
from musubi.plugin import Prompt
from musubi.testing import twins
from musubi.weights.nets import Nets

WAN = registry.find("wan")
SEED = 5


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("empty hub")))
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Toy files by option, and a LoRA as those that distil a model to four steps are written."""
    folder = tmp_path_factory.mktemp("numbers")
    task = WAN.task("t2v")
    found = {"folder": folder, "dit": twins.write_twin(WAN.dit, folder / "dit")}
    for name in ("vae", "t5"):
        found[name] = twins.write_twin(WAN.component(name), folder / name)
    found["diffusers"] = twins.write_twin(WAN.dit, folder / "diffusers", dialect="diffusers")
    found["lora"] = lora_for(task, folder / "lora.safetensors")
    return found


def lora_for(task, path, seed=0):
    """A LoRA with numbers in every layer."""
    dit = twins.build_twin(WAN.dit, numbers=twins.numbers_for(task))
    made = Adapters.create(dit, WAN.dit.traits.lora, rank=2, alpha=1.0)
    torch.manual_seed(seed)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.1)
    told = {"ss_base_model_version": "wan"}
    write_lora(path, made.tensors(), form="kohya", dtype=torch.float32, component=WAN.dit, metadata=told)  # fmt: skip
    return path


def run(words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words.split()])
    assert (end.value.code or 0) == 0, words


def generated(places, more, kind="latent"):
    folder = places["folder"] / f"made {len(list(places['folder'].iterdir()))}"
    words = (
        "generate --arch wan --task t2v --dit {dit} --vae {vae} --t5 {t5} --vae_dtype float32 --text_encoder_dtype float32 "
        "--prompt ball --video_size 32 48 --video_length 5 --cpu_noise --seed 5 " + more
    )
    made = [w.format(**places) for w in words.split()] + ["--output_type", kind]
    with pytest.raises(SystemExit) as end:
        main([*made, "--save_path", str(folder)])
    assert not end.value.code
    return sorted(p for p in folder.rglob("*") if p.is_file())


class ExactTime(torch.nn.Module):
    def forward(self, timestep):
        return sinusoid(timestep / 1000, 256)


@pytest.fixture(scope="module")
def velocity(places):
    """The velocity of diffusers' network with diffusers' reading of the LoRA."""
    import diffusers

    model = diffusers.WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, in_channels=16, out_channels=16,
        text_dim=32, ffn_dim=256, num_layers=2,
    )  # fmt: skip
    model.load_state_dict(load_file(places["diffusers"]))
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, transformer=model, vae=None, scheduler=None
    )
    pipe.load_lora_weights(str(places["lora"]))
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    model.condition_embedder.timesteps_proj = ExactTime()
    paths = {"t5": places["t5"]}
    nets = Nets(WAN, paths, device=torch.device("cpu"), dtypes={"t5": torch.float32})
    runtime = WAN.runtime(WAN, WAN.task("t2v"), {o.name: o.default for o in WAN.options})
    ((record),) = runtime.encode_text(nets, "t5", [Prompt(text="ball")])
    text = record["t5"].float()
    text = torch.nn.functional.pad(text, (0, 0, 0, 512 - len(text)))[None]

    @torch.no_grad()
    def called(x, timestep):
        return model(x, torch.tensor([timestep], dtype=torch.float64), text).sample

    return called


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("solver", ["vanilla", "lcm"])
def test_four_steps_of_a_distilled_lora(places, velocity, solver):
    """Guidance 1, four steps, flow shift 5: levels 1, 15/16, 5/6, 5/8 and nothing between."""
    levels = [1.0, 15 / 16, 5 / 6, 5 / 8, 0.0]
    x = torch.randn((16, 2, 4, 6), generator=torch.Generator().manual_seed(SEED))[None]
    fresh = torch.Generator().manual_seed((SEED * 0x9E3779B97F4A7C15 + 1) % 2**63)
    for s, t in pairwise(levels):
        v = velocity(x, 1000 * s)
        if solver == "vanilla":
            x = x + (t - s) * v
        else:  # to the clean sample, and back with new noise
            clean = x - s * v
            x = (1 - t) * clean + (t * torch.randn(x.shape, generator=fresh) if t else 0)
    more = f"--sample_solver {solver} --infer_steps 4 --guidance_scale 1.0 --flow_shift 5.0 "
    (path,) = generated(places, more + "--lora_weight {lora}")
    found = load_file(path)["latent"][None]
    assert ((found - x).norm() / x.norm()).item() < 5e-5
    (plain,) = generated(places, more)
    assert ((load_file(plain)["latent"] - x[0]).norm() / x.norm()).item() > 1e-2


def test_latents_and_images_are_both_written(places):
    made = generated(places, "--infer_steps 1 --guidance_scale 1.0", kind="latent_images")
    assert [p.suffix for p in made].count(".safetensors") == 1
    pictures = [p for p in made if p.suffix == ".png"]
    assert len(pictures) == 5
    assert np.asarray(Image.open(pictures[0])).shape == (32, 48, 3)


@pytest.mark.parametrize("task", [task.name for task in WAN.tasks])
def test_a_lora_of_each_task_is_converted_judged_and_merged(tmp_path, task):
    task = WAN.task(task)
    numbers = twins.numbers_for(task)
    dit = twins.write_twin(WAN.dit, tmp_path / "dit", numbers=numbers)
    given = lora_for(task, tmp_path / "given.safetensors")
    for target in ("diffusers", "comfy"):
        made = tmp_path / f"{target}.safetensors"
        run(f"lora convert --input {given} --output {made} --target {target}")
        if target == "comfy":  # the form that every program loads
            run(f"lora verify {made}")
        back = tmp_path / f"{target} back.safetensors".replace(" ", "_")
        run(f"lora convert --input {made} --output {back} --target kohya")
        merged = []
        for path in (given, back):
            out = tmp_path / f"merged_{target}_{path.stem}.safetensors"
            run(f"lora merge --arch wan --dit {dit} --lora_weight {path} --save_merged_model {out}")
            merged.append(load_file(out))
        base, (one, other) = load_file(dit), merged
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=1e-5)
        pairs = load_file(given)
        changed = {n for n, tensor in one.items() if not torch.equal(tensor, base[n])}
        assert len(changed) == sum(n.endswith("lora_up.weight") for n in pairs)
        name = "blocks.1.cross_attn.k.weight"
        stem = "lora_unet_blocks_1_cross_attn_k"
        delta = pairs[f"{stem}.lora_up.weight"] @ pairs[f"{stem}.lora_down.weight"] / 2
        torch.testing.assert_close(one[name] - base[name], delta, atol=1e-5, rtol=1e-4)
