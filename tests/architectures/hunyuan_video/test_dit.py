"""HunyuanVideo's denoiser as the engine meets it: sizes, layouts, padding, precision, refusals."""

import re

import pytest
import torch
from safetensors.torch import load_file

from musubi.architectures.hunyuan_video import ARCHITECTURE, keys, sizes
from musubi.architectures.hunyuan_video.dit import DoubleBlock, SingleBlock
from musubi.errors import CheckpointError
from musubi.lora.patterns import choose
from musubi.memory import recompute
from musubi.nn.attention import use
from musubi.testing.twins import build_twin, write_twin
from musubi.weights.contents import inspect
from musubi.weights.load import load
from musubi.weights.write import save

DIT = ARCHITECTURE.dit

# The released file, module by module; what each holds is in brackets.
STREAM = (
    "_mod.linear _attn_qkv _attn_proj _mlp.fc1 _mlp.fc2 _attn_q_norm[weight] _attn_k_norm[weight]"
)
RELEASED = {
    "": "img_in.proj txt_in.input_embedder txt_in.t_embedder.mlp.0 txt_in.t_embedder.mlp.2 "
    "txt_in.c_embedder.linear_1 txt_in.c_embedder.linear_2 time_in.mlp.0 time_in.mlp.2 "
    "vector_in.in_layer vector_in.out_layer guidance_in.mlp.0 guidance_in.mlp.2 "
    "final_layer.linear final_layer.adaLN_modulation.1",
    "txt_in.individual_token_refiner.blocks.{2}.": "norm1 self_attn_qkv self_attn_proj norm2 "
    "mlp.fc1 mlp.fc2 adaLN_modulation.1",
    "double_blocks.{20}.": " ".join(s + part for s in ("img", "txt") for part in STREAM.split()),
    "single_blocks.{40}.": "linear1 linear2 q_norm[weight] k_norm[weight] modulation.linear",
}


def released_names():
    for place, modules in RELEASED.items():
        count = re.search(r"\{(\d+)\}", place)
        for n in range(int(count[1]) if count else 1):
            where = re.sub(r"\{\d+\}", str(n), place)
            for module in modules.split():
                name, _, only = module.partition("[")
                leaves = (only.rstrip("]"),) if only else ("weight", "bias")
                yield from (f"{where}{name}.{leaf}" for leaf in leaves)


def comfy_name(name):
    """As ComfyUI calls it; written as replacements, unlike the key map."""
    for before, after in (
        (r"^(time_in|guidance_in|txt_in\.t_embedder)\.mlp\.0\.", r"\1.in_layer."),
        (r"^(time_in|guidance_in|txt_in\.t_embedder)\.mlp\.2\.", r"\1.out_layer."),
        (r"c_embedder\.linear_1", "c_embedder.in_layer"),
        (r"c_embedder\.linear_2", "c_embedder.out_layer"),
        (r"_attn_(qkv|proj)\.", r"_attn.\1."),
        (r"_attn_q_norm\.weight", "_attn.norm.query_norm.scale"),
        (r"_attn_k_norm\.weight", "_attn.norm.key_norm.scale"),
        (r"\.q_norm\.weight", ".norm.query_norm.scale"),
        (r"\.k_norm\.weight", ".norm.key_norm.scale"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.2"),
        (r"(_mod|modulation)\.linear", r"\1.lin"),
    ):
        name = re.sub(before, after, name)
    return name


def full():
    with torch.device("meta"):
        return DIT.build(**sizes.FULL)


def shapes_of(module):
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


@pytest.fixture
def denoiser():
    return build_twin(DIT)


def example(frames=2, size=4, tokens=(5, 9)):
    generator = torch.Generator().manual_seed(1)
    n = len(tokens)
    x = torch.randn(n, 16, frames, size, size, generator=generator)
    t = torch.linspace(0.9, 0.2, n)
    text = [torch.randn(length, 32, generator=generator) for length in tokens]
    pooled = torch.randn(n, 16, generator=generator)
    return x, t, text, pooled, torch.linspace(6000, 1000, n)


def run(module, example):
    x, t, text, pooled, guidance = example
    return module(x, t, text, pooled, guidance=guidance)


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_full_size_has_the_856_released_names():
    names = sorted(released_names())
    assert len(names) == 856
    assert sorted(full().state_dict()) == names


def test_sizes_are_read_back_and_layouts_round_trip(tmp_path):
    module = build_twin(DIT)
    assert DIT.infer(shapes_of(module)) == sizes.TINY
    ours = sorted(module.state_dict())
    assert len({layout.name for layout in keys.DIT}) == len(keys.DIT)
    for layout in keys.DIT:
        written = layout.writing(ours)
        assert [d.name for d in keys.DIT if d.recognises(written)] == [layout.name]
        assert sorted(layout.reading(written)) == ours
        path = write_twin(DIT, tmp_path / layout.name, dialect=layout.name)
        found = load(DIT, path, device="cpu", dtype=torch.float32).state_dict()
        assert all(torch.equal(found[n], t) for n, t in module.state_dict().items()), layout.name


def test_comfyui_names():
    ours = sorted(full().state_dict())
    for layout, prefix in (
        ("comfyui", "model.model."),
        ("comfyui-checkpoint", "model.diffusion_model."),
        ("comfyui-plain", ""),
    ):
        (found,) = [d for d in keys.DIT if d.name == layout]
        theirs = {prefix + comfy_name(name): name for name in ours}
        assert {t: s.names[0] for t, s in found.writing(ours).items()} == theirs
        assert {s.names[0]: o for o, s in found.reading(theirs).items()} == theirs
        newer = {name.replace("_norm.scale", "_norm.weight") for name in theirs}
        assert sorted(found.reading(newer)) == ours


def test_the_official_file_is_read(tmp_path):
    module = build_twin(DIT)
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": {n: t.bfloat16() for n, t in module.state_dict().items()}}, path)
    found = load(DIT, path, device="cpu")
    assert found.musubi_numbers == sizes.TINY
    assert found.double_blocks[0].img_attn_qkv.weight.dtype == torch.bfloat16
    assert found.double_blocks[0].img_attn_q_norm.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"drop": "single_blocks.0.linear1.weight"}, "has no tensor 'single_blocks.0.linear1"),
        ({"img_in.proj.weight": (128, 33, 1, 2, 2)}, "33 channels.*looks like HunyuanVideo-I2V"),
        ({"img_in.proj.weight": (128, 20, 1, 2, 2)}, "takes 20 channels"),
        ({"img_in.proj.weight": (100, 16, 1, 2, 2)}, r"has the shape \(100"),
        ({"img_in.proj.weight": (128, 16, 1, 1, 1)}, "has the shape"),
    ],
)
def test_near_relatives_are_refused(change, says):
    shapes = shapes_of(build_twin(DIT))
    shapes.pop(change.pop("drop", None), None)
    with pytest.raises(CheckpointError, match=says):
        DIT.infer({**shapes, **change})


@pytest.mark.parametrize("dialect", ["official", "diffusers", "comfyui"])
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("clean_x_embedder.proj.weight", "a FramePack denoiser"),
        ("byt5_in.fc1.weight", "a HunyuanVideo 1.5 denoiser"),
    ],
)
def test_descendants_are_refused_by_what_they_have_more(dialect, name, what, tmp_path):
    path = write_twin(DIT, tmp_path, dialect=dialect)
    (prefix,) = [d.prefix for d in keys.DIT if d.name == dialect]
    save(path, {**load_file(path), prefix + name: torch.zeros(2)}, {})
    with pytest.raises(CheckpointError, match=rf"not HunyuanVideo's dit\. It looks like {what}"):
        inspect(DIT, path)


@pytest.mark.parametrize("name", ["vae", "text_encoder1", "text_encoder2"])
def test_other_networks_are_told_by_their_flag(name, tmp_path):
    path = write_twin(ARCHITECTURE.component(name), tmp_path)
    with pytest.raises(CheckpointError, match=f"It seems to be the {name}, which --{name} takes"):
        inspect(DIT, path, others=ARCHITECTURE.components)


def test_a_file_of_something_else_is_refused_by_what_it_lacks():
    with pytest.raises(CheckpointError, match=r"has no tensor 'img_in\.proj\.weight'"):
        DIT.infer({"anything": (1, 1)})


def test_flux_is_not_taken_for_it():
    flux = [
        "img_in.weight",
        "txt_in.weight",
        "double_blocks.0.img_attn.qkv.weight",
        "single_blocks.0.linear1.weight",
    ]
    assert not any(layout.recognises(flux) for layout in keys.DIT)


def test_a_batch_of_unequal_texts_equals_singles(denoiser):
    x, t, text, pooled, guidance = example(tokens=(5, 9, 1))
    with torch.no_grad():
        both = run(denoiser, (x, t, text, pooled, guidance))
        for i in range(3):
            one = slice(i, i + 1)
            near(both[one], run(denoiser, (x[one], t[one], text[one], pooled[one], guidance[one])))


def test_padding_matters_neither_forward_nor_backward(denoiser):
    x, t, text, pooled, guidance = example(tokens=(5, 3))
    denoiser.requires_grad_(True)

    def gradients(**given):
        denoiser.zero_grad()
        found = denoiser(x, t, pooled=pooled, guidance=guidance, **given)
        found.square().mean().backward()
        return found.detach(), {n: p.grad.clone() for n, p in denoiser.named_parameters()}

    expected, slopes = gradients(text=text)
    for filler in (0.0, 1e4, float("nan")):
        padded = torch.full((2, 12, 32), filler)
        for i, one in enumerate(text):
            padded[i, : len(one)] = one
        found, others = gradients(text=padded, lengths=[5, 3])
        assert torch.equal(found, expected)
        assert all(torch.equal(others[n], slope) for n, slope in slopes.items())
    batched, _ = gradients(text=[text[0][:3], text[1]], lengths=[3, 3])
    assert not torch.allclose(batched[:1], expected[:1]), "the text must matter"


def test_lengths_cut_lists_too(denoiser):
    x, t, text, pooled, guidance = example()
    with torch.no_grad():
        cut = denoiser(x, t, text, pooled, lengths=[4, 2], guidance=guidance)
        assert torch.equal(cut, run(denoiser, (x, t, [text[0][:4], text[1][:2]], pooled, guidance)))
    with pytest.raises(ValueError, match="at least one token"):
        denoiser(x, t, text, pooled, lengths=[4, 0], guidance=guidance)


def test_split_attention_changes_nothing(denoiser):
    given = example()
    with torch.no_grad():
        expected = run(denoiser, given)
        with use("sdpa", split=True):
            near(run(denoiser, given), expected)


def test_every_input_matters_and_guidance_is_needed(denoiser):
    x, t, text, pooled, guidance = example()
    with torch.no_grad():
        expected = run(denoiser, (x, t, text, pooled, guidance))
        for other in (
            (x, t * 0.5, text, pooled, guidance),
            (x, t, text, -pooled, guidance),
            (x, t, text, pooled, guidance / 6),
        ):
            assert not torch.allclose(run(denoiser, other), expected, atol=1e-3)
    with pytest.raises(ValueError, match="guidance"):
        denoiser(x, t, text, pooled)
    with pytest.raises(ValueError, match="2x2"):
        denoiser(x[..., :3], t, text, pooled, guidance=guidance)


def lowered(module, dtype):
    """As weights are loaded: everything in `dtype` but what the traits keep in float32."""
    for name, p in module.named_parameters():
        if not any(re.fullmatch(pattern, name) for pattern in sizes.DIT_TRAITS.fp32):
            p.data = p.data.to(dtype)
    return module


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(denoiser, dtype, autocast):
    given = example()
    with torch.no_grad():
        expected = run(denoiser, given)
        lowered(denoiser, dtype)
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            found = run(denoiser, given)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.03 * expected.norm()


def selected(names, **chosen):
    return choose(names, sizes.DIT_TRAITS.lora, **chosen)[0]


def test_traits_name_what_they_mean():
    module = full()
    params = dict(module.named_parameters())
    kept = {n for n in params if any(re.fullmatch(p, n) for p in sizes.DIT_TRAITS.fp32)}
    small = {n for n in params if any(re.fullmatch(p, n) for p in sizes.DIT_TRAITS.quantize)}
    assert not kept & small
    assert sum(params[n].numel() for n in kept) < 250_000
    assert {n for n in kept if n.startswith(("double", "single"))} == {
        n for n in params if "_norm." in n
    }
    assert small == {
        n for n, p in params.items() if n.startswith(("double", "single")) and p.ndim == 2
    }
    linear = [n for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)]
    targets = selected(linear)
    assert len(targets) == 20 * 8 + 40 * 2
    assert len(selected(linear, include=[r".*modulation.*"])) == 240 + 40
    counted = {g: len(selected(linear, groups=[g])) for g in sizes.DIT_TRAITS.lora.groups}
    assert counted == {
        "attention": 80 + 80,
        "mlp": 80 + 80,
        "double_blocks": 160,
        "single_blocks": 80,
    }


def test_stacks_run_once_in_order(denoiser):
    ran = []
    blocks = list(recompute.blocks(denoiser, sizes.DIT_TRAITS))
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    run(denoiser, example())
    assert ran == list(range(4))


def test_gradients_reach_every_parameter_and_recompute_changes_none(denoiser):
    given = example()
    denoiser.requires_grad_(True)
    given[0].requires_grad_(True)

    def gradients():
        denoiser.zero_grad()
        run(denoiser, given).square().mean().backward()
        return {
            n: None if p.grad is None else p.grad.clone() for n, p in denoiser.named_parameters()
        }

    plain = gradients()
    assert given[0].grad is not None and given[0].grad.any()
    dead = [n for n, g in plain.items() if g is None or not g.any()]
    assert not dead
    recompute.apply(denoiser, sizes.DIT_TRAITS)
    again = gradients()
    assert all(torch.equal(again[n], g) for n, g in plain.items())


def block_inputs(lengths, words=5):
    generator = torch.Generator().manual_seed(2)
    img, txt = (torch.randn(2, n, 128, generator=generator) for n in (8, words))
    vec, angles = (
        torch.randn(2, 128, generator=generator),
        torch.rand(8 + words, 64, generator=generator),
    )
    cos, sin = angles.cos(), angles.sin()
    return {
        DoubleBlock: (img, txt, vec, cos[:8], sin[:8], lengths),
        SingleBlock: (torch.cat([img, txt], 1), vec, cos, sin, lengths),
    }


@pytest.mark.parametrize("lengths", [None, (13, 10)])
@pytest.mark.parametrize("kind", [DoubleBlock, SingleBlock])
def test_one_trace_without_a_break_serves_all_blocks(denoiser, kind, lengths):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    given = block_inputs(lengths)[kind]
    stack = denoiser.double_blocks if kind is DoubleBlock else denoiser.single_blocks
    torch._dynamo.reset()
    compiled = torch.compile(kind.forward, backend=counter, fullgraph=True)
    with torch.no_grad():
        for block in stack:
            torch.testing.assert_close(compiled(block, *given), block(*given))
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", [DoubleBlock, SingleBlock])
def test_captions_of_any_length_cost_few_traces(denoiser, kind):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    block = (denoiser.double_blocks if kind is DoubleBlock else denoiser.single_blocks)[0]
    torch._dynamo.reset()
    compiled = torch.compile(kind.forward, backend=counter, fullgraph=True)
    with torch.no_grad():
        for longest, other in ((5, 3), (6, 2), (9, 7), (4, 4), (12, 1), (7, 5), (8, 8), (11, 10)):
            lengths = None if longest == other else (8 + longest, 8 + other)
            given = block_inputs(lengths, longest)[kind]
            torch.testing.assert_close(compiled(block, *given), block(*given))
    assert counter.frame_count <= 3


def test_position_tables_are_computed_once_a_size(denoiser):
    given = example()
    with torch.no_grad():
        run(denoiser, given)
        run(denoiser, given)
    assert len(denoiser._tables) == 1
