"""Wan as the engine meets it: sizes, layouts, precision, text, noise, refusals."""

import pytest
import torch
from torch import nn

from musubi.architectures.wan import ARCHITECTURE, dit, keys
from musubi.architectures.wan.runtime import WanRuntime
from musubi.encoders.umt5 import network as umt5
from musubi.encoders.wan_vae import network as wan_vae
from musubi.errors import CheckpointError, ConfigError
from musubi.nn.attention import use
from musubi.plugin import Conditioning, Prompt, Recipe
from musubi.testing.twins import fill
from musubi.weights.contents import inspect
from musubi.weights.write import save

DIT, VAE, T5 = (ARCHITECTURE.component(name) for name in ("dit", "vae", "t5"))


@pytest.fixture
def denoiser():
    return fill(DIT.build(**{**DIT.tiny, "dim": 256})).requires_grad_()


def example(frames=2, size=4, batch=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 16, frames, size, size, generator=generator)
    t = torch.linspace(0.9, 0.2, batch)
    words = [torch.randn(5 + 3 * i, 32, generator=generator) for i in range(batch)]
    return x, t, words


def shapes_of(module):
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


@pytest.mark.parametrize("component", [DIT, VAE, T5], ids=lambda c: c.name)
def test_sizes_are_read_back_and_layouts_round_trip(component):
    module = component.build(**component.tiny)
    assert component.infer(shapes_of(module)) == component.tiny
    ours = sorted(module.state_dict())
    for layout in component.dialects:
        written = layout.writing(ours)
        assert len(written) == len(ours)
        assert [d.name for d in component.dialects if d.recognises(written)] == [layout.name]
        assert sorted(layout.reading(written)) == ours


@pytest.mark.parametrize("family", ["i2v", "flf2v"])
def test_image_families_are_told_by_their_tensors(family):
    with torch.device("meta"):
        module = DIT.build(**{**DIT.tiny, "family": family, "in_dim": 36})
    shapes = shapes_of(module)
    found = DIT.infer(shapes)
    assert (found["family"], found["in_dim"]) == (family, 36)
    diffusers = next(d for d in keys.DIT if d.name == "diffusers")
    assert sorted(diffusers.reading(diffusers.writing(shapes))) == sorted(shapes)


@pytest.mark.parametrize(
    ("infer", "other", "says"),
    [
        (dit.infer, VAE, "not a Wan denoiser"),
        (dit.infer, T5, "not a Wan denoiser"),
        (wan_vae.infer, DIT, "not a Wan VAE"),
        (umt5.infer, VAE, "not a umT5 text encoder"),
    ],
)
def test_strangers_are_refused_by_name(infer, other, says):
    shapes = shapes_of(other.build(**other.tiny))
    with pytest.raises(CheckpointError, match=says):
        infer(shapes)


def test_near_relatives_are_refused():
    shapes = shapes_of(VAE.build(dim=8, z_dim=48))
    with pytest.raises(CheckpointError, match="48 channels"):
        wan_vae.infer(shapes)
    shapes = shapes_of(T5.build(**T5.tiny))
    shared = {n: s for n, s in shapes.items() if "block.1.layer.0.SelfAttention.rel" not in n}
    with pytest.raises(CheckpointError, match="not umT5"):
        umt5.infer(shared)
    with pytest.raises(CheckpointError, match=r"'patch_embedding.weight' has the shape \(100"):
        dit.infer(
            {**shapes_of(DIT.build(**DIT.tiny)), "patch_embedding.weight": (100, 16, 1, 2, 2)}
        )


def test_other_denoisers_are_told_by_name(tmp_path):
    path = tmp_path / "other.safetensors"
    save(path, {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.zeros(2)}, {})
    with pytest.raises(
        CheckpointError, match=r"is not Wan.*'s dit.* It looks like a FLUX denoiser"
    ):
        inspect(DIT, path)


def test_two_samples_equal_two_singles(denoiser):
    x, t, words = example()
    with torch.no_grad():
        both = denoiser(x, t, words)
        for i in range(2):
            one = denoiser(x[i : i + 1], t[i : i + 1], words[i : i + 1])
            torch.testing.assert_close(both[i : i + 1], one, rtol=1e-5, atol=1e-5)


def test_split_attention_changes_nothing(denoiser):
    x, t, words = example()
    with torch.no_grad():
        expected = denoiser(x, t, words)
        with use("sdpa", split=True):
            torch.testing.assert_close(denoiser(x, t, words), expected, rtol=1e-5, atol=1e-5)


def test_skipped_blocks_do_not_run(denoiser):
    x, t, words = example()
    ran = []
    for i, block in enumerate(denoiser.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    runtime = WanRuntime(ARCHITECTURE, ARCHITECTURE.tasks[0], {})
    given = Conditioning({"t5": words})
    with torch.no_grad():
        whole = runtime.predict(denoiser, x, t, given)
        part = runtime.predict(denoiser, x, t, given.plus(skip_blocks=(1,)))
    assert ran == [0, 1, 0]
    assert not torch.allclose(whole, part)


def lowered(module, dtype):
    """As weights are loaded: everything in `dtype` but what the traits keep in float32."""
    import re

    for name, p in module.named_parameters():
        if not any(re.fullmatch(pattern, name) for pattern in DIT.traits.fp32):
            p.data = p.data.to(dtype)
    return module


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_and_keeps_float32_where_declared(denoiser, dtype, autocast):
    x, t, words = example()
    with torch.no_grad():
        expected = denoiser(x, t, words)
        lowered(denoiser, dtype)
        kept = {n for n, p in denoiser.named_parameters() if p.dtype == torch.float32}
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            found = denoiser(x, t, words)
    assert "blocks.0.modulation" in kept and "blocks.1.self_attn.norm_q.weight" in kept
    assert "head.head.weight" in kept and "blocks.0.norm3.bias" in kept
    assert not any("ffn" in n or "embedding" in n or "projection" in n for n in kept)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_gradients_reach_every_parameter_and_the_latents(denoiser):
    x, t, words = example()
    x.requires_grad_(True)
    denoiser(x, t, words).square().mean().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    dead = [n for n, p in denoiser.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_a_block_traces_without_a_break(denoiser):
    compiled = torch.compile(denoiser.blocks[0], backend="eager", fullgraph=True)
    x, e = torch.randn(2, 8, 256), torch.randn(2, 6, 256)
    words, angles = torch.randn(2, 512, 256), torch.rand(8, 64)
    with torch.no_grad():
        arguments = (x, e, words, angles.cos(), angles.sin())
        torch.testing.assert_close(compiled(*arguments), denoiser.blocks[0](*arguments))


def test_one_trace_serves_all_blocks(denoiser):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    x, e = torch.randn(2, 8, 256), torch.randn(2, 6, 256)
    words, angles = torch.randn(2, 512, 256), torch.rand(8, 64)
    torch._dynamo.reset()
    run = torch.compile(dit.Block.forward, backend=counter, fullgraph=True)
    with torch.no_grad():
        for block in denoiser.blocks:
            x = run(block, x, e, words, angles.cos(), angles.sin())
    assert counter.frame_count == 1


def test_position_tables_are_computed_once_a_size(denoiser):
    x, t, words = example()
    with torch.no_grad():
        denoiser(x, t, words)
        denoiser(x, t, words)
    assert len(denoiser._tables) == 1


def test_frame_positions_move_frames_in_time(denoiser):
    x, t, words = example()
    with torch.no_grad():
        plain = denoiser(x, t, words)
        assert torch.equal(plain, denoiser(x, t, words, frame_positions=[0, 1]))
        assert not torch.allclose(plain, denoiser(x, t, words, frame_positions=[0, 7]))


def test_odd_latents_are_refused(denoiser):
    with pytest.raises(ValueError, match="3x4"):
        denoiser(torch.zeros(1, 16, 1, 3, 4), torch.ones(1), [torch.zeros(1, 32)])


def test_whole_timesteps_survive_float32():
    t = torch.tensor([999, 978, 257, 1], dtype=torch.float64)
    assert torch.equal(dit.sinusoid((t / 1000).float(), 256), dit.sinusoid(t / 1000, 256))


class Nets(dict):
    device = torch.device("cpu")

    def tokenizer(self, name):
        return Tokenizer()


class Tokenizer:
    """Bytes, an end token, padding on the right."""

    def __call__(self, captions, *, max_length=None, **_):
        if isinstance(captions, str):
            return {"input_ids": [*(3 + b for b in captions.encode()), 1]}
        rows = [[*[3 + b for b in c.encode()][: max_length - 1], 1] for c in captions]
        width = max(map(len, rows))
        return {
            "input_ids": torch.tensor([r + [0] * (width - len(r)) for r in rows]),
            "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
        }


def test_text_records_have_their_own_length():
    nets = Nets(t5=fill(T5.build(**T5.tiny)))
    runtime = WanRuntime(ARCHITECTURE, ARCHITECTURE.tasks[0], {})
    prompts = [Prompt(text=text) for text in ("a cat", "", "x" * 600)]
    records = runtime.encode_text(nets, "t5", prompts)
    assert [tuple(r["t5"].shape) for r in records] == [(6, 32), (1, 32), (512, 32)]


def recipe(**changes):
    fields = {
        "prompt": "", "negative_prompt": "", "width": 64, "height": 48, "frames": 9, "fps": 16.0,
        "seed": 7, "steps": 1, "solver": "unipc", "flow_shift": 1.0, "guidance_scale": 1.0,
    }  # fmt: skip
    return Recipe(**{**fields, **changes})


def test_noise_is_one_draw_from_the_seed():
    runtime = WanRuntime(ARCHITECTURE, ARCHITECTURE.tasks[0], {})
    rollout = runtime.rollout(recipe(cpu_noise=True), Conditioning({}), torch.device("cpu"))
    section = next(rollout)
    torch.manual_seed(7)
    assert torch.equal(section.noise[0], torch.randn(16, 3, 6, 8))
    with pytest.raises(StopIteration) as end:
        rollout.send(section.noise)
    assert end.value.value is section.noise


def test_a_tile_size_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"vae_tile_size is 100.*--vae_tile_size 96"):
        WanRuntime(ARCHITECTURE, ARCHITECTURE.tasks[0], {"vae_tiling": True, "vae_tile_size": 100})


def test_lora_targets_are_the_ones_that_files_use(denoiser):
    import re

    targets = DIT.traits.lora
    found = [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear)
        and any(re.fullmatch(p, name) for p in targets.include)
        and not any(re.fullmatch(p, name) for p in targets.exclude)
    ]
    assert len(found) == 10 * len(denoiser.blocks)
    grouped = {
        group: sum(any(re.fullmatch(p, name) for p in patterns) for name in found)
        for group, patterns in targets.groups.items()
    }
    blocks = len(denoiser.blocks)
    assert grouped == {
        "attention": 8 * blocks,
        "self_attention": 4 * blocks,
        "cross_attention": 4 * blocks,
        "mlp": 2 * blocks,
    }


def test_quantised_weights_are_the_blocks_products(denoiser):
    import re

    names = [
        n for n in denoiser.state_dict() if any(re.fullmatch(p, n) for p in DIT.traits.quantize)
    ]
    assert len(names) == 10 * len(denoiser.blocks)
    assert not any(re.fullmatch(p, n) for p in DIT.traits.fp32 for n in names)


def test_layers_wider_than_the_products_do_no_harm(denoiser):
    x, t, words = example()
    with torch.no_grad():
        expected = denoiser(x, t, words)
        lowered(denoiser, torch.bfloat16)
        denoiser.patch_embedding.float()
        denoiser.time_projection.float()
        found = denoiser(x, t, words)
    assert (found - expected).norm() < 0.03 * expected.norm()
