import pytest
import torch

from musubi import registry
from musubi.errors import ConfigError
from musubi.estimate.cards import named
from musubi.estimate.record import Case
from musubi.estimate.sizes import weights_of
from musubi.estimate.step import estimate
from musubi.lora.adapter import Adapters
from musubi.plan.choose import MARGIN, choose, needed, stream_counts
from musubi.plugin import Policy

WAN = registry.find("wan")
NUMBERS = {**WAN.dit.tiny, "dim": 1024, "ffn_dim": 4096, "num_layers": 8}
CARD = named("RTX 4090")


def lora(module):
    made = Adapters.create(module, WAN.dit.traits.lora, rank=4, alpha=1.0)
    made.attach()
    return list(made.parameters())


def whole(module):
    return [p.requires_grad_() for p in module.parameters()]


def case(attach=lora, **sizes):
    asked = {"width": 512, "height": 512, "frames": 17, **sizes}
    return Case(
        architecture=WAN, task=WAN.tasks[0], numbers=NUMBERS, dtype=torch.bfloat16, attach=attach,
        whole=attach is whole, **asked,
    )  # fmt: skip


def size(policy, attach=lora):
    return needed(estimate(case(attach), policy))


def chosen(vram, attach=lora, **more):
    return choose(case(attach), vram=vram, card=CARD, **more)


def test_with_room_nothing_is_computed_again():
    found = chosen(1 << 40)
    assert found.policy == Policy(compile=True)


def test_less_room_is_met_by_the_cheapest_settings():
    for again, less in (("none", "attention"), ("attention", "blocks")):
        room = size(Policy(recompute=again, compile=True)) - 1
        found = chosen(room, fixed={"streamed": (), "offload_activations": False})
        assert found.policy.recompute == less


def test_as_few_blocks_as_it_takes_are_streamed():
    policy = Policy(recompute="blocks", compile=True, streamed=(5,))
    found = chosen(size(policy), fixed={"recompute": "blocks", "offload_activations": False})
    assert found.policy == policy


def test_what_is_chosen_fits_with_a_margin():
    for room in (300 << 20, 400 << 20, 600 << 20, 1 << 30):
        try:
            found = chosen(MARGIN + room)
        except ConfigError:
            continue
        assert needed(found.estimate) <= MARGIN + room
        assert found.estimate.device * 1.05 <= room + 1


def test_the_numbers_stay_as_they_are_where_that_is_possible():
    exact = size(Policy(recompute="blocks", compile=True, streamed=(7,), offload_activations=True))
    assert chosen(exact).policy.storage == "native"
    smaller = Policy(
        recompute="blocks", storage="fp8_scaled", streamed=(7,), offload_activations=True
    )
    assert size(smaller) < exact
    found = chosen(exact - 1, may_compile=False)
    assert found.policy.storage in ("native", "fp8_scaled")


def test_what_the_user_decided_stays():
    fixed = {
        "storage": "fp8_scaled",
        "quantized_matmul": True,
        "streamed": (2,),
        "recompute": "blocks",
    }
    found = chosen(1 << 40, fixed=fixed, may_compile=False).policy
    assert found == Policy(**fixed)


def test_host_memory_is_a_limit_too():
    tight = size(Policy(recompute="blocks", compile=True, streamed=(6,)))
    free = chosen(tight)
    assert free.estimate.pinned > 0
    with pytest.raises(ConfigError, match="--ram allows"):
        chosen(tight, ram=free.estimate.host // 2)


def test_when_nothing_fits_the_nearest_is_named():
    with pytest.raises(ConfigError, match=r"Nothing fits 0\.1 GiB at 512x512, 17 frames") as told:
        chosen(100 << 20)
    assert "smaller or shorter" in told.value.fix


def test_a_network_in_training_is_neither_streamed_nor_rounded():
    found = chosen(size(Policy(recompute="blocks", compile=True), whole), whole).policy
    assert found.storage == "native"
    assert not any(found.streamed)


def test_a_denoising_step_keeps_nothing():
    room = size(Policy(streamed=(4,)), None)
    found = chosen(room, None, may_compile=False).policy
    assert found == Policy(streamed=found.streamed)
    assert found.streamed[0] <= 4


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_counts_of_streamed_blocks_end_where_stacks_do(name):
    architecture = registry.find(name)
    numbers = architecture.variants[0].numbers
    sizes = weights_of(architecture.dit, numbers, dtype=torch.bfloat16)
    depths = [len(stack) for stack in sizes.blocks]
    counts = stream_counts(architecture.dit, depths)
    assert counts[0] == ()
    assert all(n <= depth for n, depth in zip(counts[-1], depths, strict=False))
    pinned = [sizes.placed(count)[1] for count in counts]
    assert pinned == sorted(pinned)
    assert pinned[-1] > 0.8 * sizes.total
