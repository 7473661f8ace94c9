"""Estimates against runs: the same accountant over real tensors on a CPU, at toy sizes."""

from dataclasses import replace

import pytest
import torch

from musubi import registry
from musubi.errors import MissingPackageError
from musubi.estimate.cards import CARDS, named
from musubi.estimate.example import example_batch
from musubi.estimate.optimizers import state_bytes
from musubi.estimate.record import Case, on_meta
from musubi.estimate.sizes import weights_of
from musubi.estimate.step import LIBRARIES, Optimizer, estimate
from musubi.estimate.trace import Recorder
from musubi.lora.adapter import Adapters
from musubi.memory import quantized, recompute
from musubi.plugin import Policy
from musubi.train import optim

WAN = registry.find("wan")
HUNYUAN = registry.find("hunyuan_video")
TOYS = {
    "wan": {**WAN.dit.tiny, "dim": 256, "ffn_dim": 512, "num_layers": 6},
    "hunyuan_video": {**HUNYUAN.dit.tiny, "double_depth": 4, "single_depth": 5},
}


class Lora:
    """Attaches a LoRA of rank 4."""

    def __init__(self, architecture):
        self.targets = architecture.dit.traits.lora

    def __call__(self, module):
        made = Adapters.create(module, self.targets, rank=4, alpha=1.0)
        made.attach()
        return list(made.parameters())


LORAS = {name: Lora(registry.find(name)) for name in TOYS}


def case(name="wan", *, trains=True, **sizes):
    architecture = registry.find(name)
    asked = {"width": 128, "height": 128, "frames": 9, **sizes}
    return Case(
        architecture=architecture,
        task=architecture.tasks[0],
        numbers=TOYS[name],
        dtype=torch.float32,
        compute=None,
        attach=LORAS[name] if trains else None,
        **asked,
    )


def measured(case, policy):
    """The peak of a real step's activations and gradients, every block run."""
    architecture = case.architecture
    torch.manual_seed(0)
    dit = architecture.dit.build(**case.numbers).requires_grad_(False).float()
    if policy.storage != "native":
        names = quantized.convert(dit, architecture.dit.traits, quantized_matmul=False)
        assert names
    runtime = architecture.runtime(architecture, case.task, case.options)
    given = runtime.condition(
        example_batch(
            architecture, case.task, case.numbers, width=case.width, height=case.height,
            frames=case.frames, batch=case.batch, dtype=torch.float32,
        )
    )  # fmt: skip
    trained = []
    if case.attach is not None:
        dit.train()
        trained = case.attach(dit)
    if policy.recompute != "none":
        keep = policy.recompute == "attention"
        recompute.apply(dit, architecture.dit.traits, keep_attention=keep)
    t = torch.full((case.batch,), 0.5)
    with Recorder() as recorder:
        x = torch.randn_like(given.latents)
        noise = torch.randn_like(given.latents)
        if case.attach is None:
            with torch.no_grad():
                runtime.predict(dit, x, t, given)
        else:
            error = runtime.predict(dit, x, t, given) - (noise - x)
            loss = error.square().mean()
            del error
            loss.backward()
    assert all(p.grad is not None for p in trained)
    return recorder.trace.peak


def estimated(case, policy):
    """The same, estimated: without weights, and what is trained."""
    found = estimate(case, policy, optimizer=Optimizer(offload=True))
    named = ("weights", "what is trained")
    return sum(n for what, n in found.parts.items() if what not in named)


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("again", ["none", "attention", "blocks"])
def test_a_training_step_peaks_where_it_was_estimated(name, again):
    policy = Policy(recompute=again)
    found = measured(case(name), policy)
    assert estimated(case(name), policy) == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize("name", TOYS)
def test_8_bit_weights_are_expanded_one_at_a_time(name):
    policy = Policy(storage="fp8_scaled", recompute="blocks")
    found = measured(case(name), policy)
    assert estimated(case(name), policy) == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize("name", TOYS)
def test_a_denoising_step_peaks_where_it_was_estimated(name):
    asked = case(name, trains=False)
    assert estimated(asked, Policy()) == pytest.approx(measured(asked, Policy()), rel=0.03)


def test_two_videos_take_twice_the_activations():
    one, two = (estimated(case(batch=n), Policy(recompute="blocks")) for n in (1, 2))
    assert 1.8 < two / one <= 2.0


@pytest.mark.parametrize("storage", ["native", "fp8", "fp8_scaled"])
@pytest.mark.parametrize("name", TOYS)
def test_weights_are_counted_to_the_byte(name, storage):
    component = registry.find(name).dit
    module = on_meta(component, TOYS[name], torch.bfloat16)
    if storage != "native":
        quantized.convert(module, component.traits, quantized_matmul=False)
    tensors = [*module.parameters(), *module.buffers()]
    exact = sum(t.numel() * t.element_size() for t in tensors)
    found = weights_of(component, TOYS[name], dtype=torch.bfloat16, storage=storage)
    assert exact <= found.total <= exact + 512 * len(tensors)


def test_streamed_blocks_leave_two_slots_behind():
    found = weights_of(WAN.dit, TOYS["wan"], dtype=torch.bfloat16)
    (blocks,) = found.blocks
    there, away = found.placed((4,))
    assert away == 4 * blocks[0]
    assert there == found.total - 2 * blocks[0]
    assert found.placed(()) == (found.total, 0)


@pytest.mark.parametrize("name", TOYS)
def test_more_streamed_blocks_never_need_more(name):
    counts = [(n, n) for n in range(2, 5)]
    found = [
        estimate(case(name), Policy(recompute="blocks", streamed=streamed)) for streamed in counts
    ]
    sizes = [one.device for one in found]
    assert sizes == sorted(sizes, reverse=True)
    pinned = [one.pinned for one in found]
    assert pinned == sorted(pinned)


def test_what_is_trained_is_counted_with_its_optimizer():
    numbers = sum(p.numel() for p in LORAS["wan"](on_meta(WAN.dit, TOYS["wan"], torch.float32)))
    parts = estimate(case(), Policy(recompute="blocks"), optimizer=Optimizer(name="AdamW")).parts
    assert parts["what is trained"] == 12 * numbers
    away = estimate(case(), Policy(recompute="blocks"), optimizer=Optimizer(offload=True))
    assert away.parts["what is trained"] == 4 * numbers


def test_activations_on_the_host_are_pinned_there():
    big = case(width=512, height=512)
    there = estimate(big, Policy(recompute="blocks"))
    away = estimate(big, Policy(recompute="blocks", offload_activations=True))
    assert away.device < there.device
    assert away.pinned == 6 * 3 * 32 * 32 * 256 * 4


def test_compiled_blocks_keep_less():
    half = replace(case(), dtype=torch.bfloat16, compute=torch.bfloat16)
    plain, fused = (
        estimate(half, Policy(compile=c)).parts["kept for the backward pass"] for c in (False, True)
    )
    assert 0.5 * plain < fused < 0.9 * plain


def test_seconds_grow_with_what_is_computed_again_and_with_the_link():
    card = named("H200")
    none, attention, blocks = (
        estimate(case(), Policy(recompute=again), card=card).seconds
        for again in ("none", "attention", "blocks")
    )
    assert none < attention < blocks
    slow = replace(card, link=1e6)
    streamed = Policy(recompute="blocks", streamed=(5,))
    found = estimate(case(), streamed, card=slow)
    assert found.seconds == pytest.approx(2 * found.pinned / 1e6)


def test_parts_add_up_to_the_whole():
    found = estimate(case(), Policy(recompute="blocks"))
    assert sum(found.parts.values()) == found.device
    assert list(found.parts.values()) == sorted(found.parts.values(), reverse=True)
    assert found.parts["weights"] > LIBRARIES


@pytest.mark.parametrize(
    ("name", "each"),
    [("adamw", 8), ("AdamW", 8), ("sgd", 0), ("adagrad", 4), ("schedulefree", 8), ("my.own", 8)],
)
def test_states_of_optimizers(name, each):
    assert state_bytes(name, [4096, 8192]) == each * 12288


def test_8_bit_states_are_a_quarter():
    assert state_bytes("adamw8bit", [1 << 20]) == pytest.approx(2 * (1 << 20), rel=0.02)
    assert state_bytes("adamw8bit", [100]) == 800  # small tensors stay in float32


def test_an_average_lies_where_the_states_do():
    def needs(**more):
        return estimate(case(), Policy(), optimizer=Optimizer(**more))

    plain, averaged = needs(name="sgd"), needs(name="sgd", average=True)
    assert averaged.parts["what is trained"] == 2 * plain.parts["what is trained"]
    away = needs(name="sgd", average=True, offload=True)
    assert away.host - needs(name="sgd", offload=True).host == plain.parts["what is trained"]


@pytest.mark.parametrize("name", ["adamw4bit", "lion", "lion8bit", "came", "muon"])
def test_states_are_counted_as_the_optimizer_makes_them(name):
    p = torch.nn.Parameter(torch.zeros(256, 128))
    p.grad = torch.ones_like(p)
    try:
        made = optim.find(name)([p], lr=1e-3)
    except MissingPackageError:
        pytest.skip("bitsandbytes is not installed")
    made.step()

    def tensors(value):
        if isinstance(value, dict):
            return [t for one in value.values() for t in tensors(one)]
        return [value] if isinstance(value, torch.Tensor) else []

    held = sum(t.numel() * t.element_size() for t in tensors(dict(made.state[p])))
    assert held == pytest.approx(state_bytes(name, [p.numel()]), rel=0.05)


def test_cards_are_found_by_a_part_of_their_name():
    assert named("NVIDIA GeForce RTX 4090").name == "RTX 4090"
    assert named("NVIDIA H100 PCIe").name == "H100 PCIe"
    assert len({card.name for card in CARDS}) == len(CARDS)
