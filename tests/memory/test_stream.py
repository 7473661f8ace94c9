"""Blocks that live in host memory: where they are at which time, and what they compute."""

import copy

import pytest
import torch
from torch import nn

from musubi.errors import ConfigError
from musubi.memory.apply import PolicyPlacement, park, placer
from musubi.memory.quantized import DTYPES
from musubi.memory.stream import SLOTS, spread
from musubi.plugin import Policy, Traits
from musubi.plugin.policy import Storage

TRAITS = Traits(stacks=("blocks",), quantize=(r"blocks\.\d+\.inner\.weight",))
CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self, width: int, fold: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width * fold)
        self.outer = nn.Linear(width * fold, width)
        self.register_buffer("shift", torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.tanh(self.inner(x))) + self.shift


class Net(nn.Module):
    def __init__(self, count: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(4, 16)
        # Blocks of two sizes take turns in slots of one.
        self.blocks = nn.ModuleList(Block(16, 2 + i % 2) for i in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def placed(policy: Policy, count: int = 5, traits: Traits = TRAITS) -> tuple[Net, Net]:
    """The network as it is, and another one with the same weights under a policy."""
    torch.manual_seed(0)
    plain = Net(count).requires_grad_(False)
    with torch.device("meta"):
        module = Net(count).requires_grad_(False)
    placement = PolicyPlacement(traits, policy, CPU, smallest=1)
    values = plain.state_dict()
    placement.prepare(module, {name: value.dtype for name, value in values.items()})
    for name, value in values.items():
        for stored, tensor in (placement.store(name, value, None) or {name: value}).items():
            home = placement.home(stored)
            tensor = tensor.clone() if home is None else home.copy_(tensor)
            path, _, leaf = stored.rpartition(".")
            owner = module.get_submodule(path)
            if leaf in owner._parameters:
                owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
            else:
                owner._buffers[leaf] = tensor
    return plain, placement.finish(module)


def away(module: Net) -> list[int]:
    return [i for i, block in enumerate(module.blocks) if not block.inner.weight.numel()]


def test_the_streamed_are_spread_evenly() -> None:
    assert spread(8, 2) == [3, 7]
    assert spread(5, 5) == [0, 1, 2, 3, 4]
    assert spread(5, 0) == []
    for count in range(1, 12):
        for streamed in range(count + 1):
            assert len(spread(count, streamed)) == streamed


def test_blocks_are_away_until_they_run_and_at_most_two_visit() -> None:
    plain, module = placed(Policy(streamed=(5,)))
    assert away(module) == [0, 1, 2, 3, 4]
    assert [n for n, _ in module.named_parameters()] == [n for n, _ in plain.named_parameters()]
    x = torch.randn(3, 4)
    assert torch.equal(module(x), plain(x))
    assert len(away(module)) == 5 - SLOTS


def test_large_layers_outside_the_blocks_come_for_their_call() -> None:
    plain, module = placed(Policy(streamed=(1,)))
    assert not module.first.weight.numel() and not module.first.bias.numel()
    x = torch.randn(3, 4, requires_grad=True)
    out = module(x)
    assert torch.equal(out, plain(x))
    assert not module.first.weight.numel() and not module.first.bias.numel()
    (found,) = torch.autograd.grad(out.square().sum(), x)
    (expected,) = torch.autograd.grad(plain(x).square().sum(), x)
    assert torch.equal(found, expected)
    _, resident = placed(Policy(recompute="blocks"))
    assert resident.first.weight.numel()


def test_a_block_that_is_away_fails_loudly() -> None:
    _, module = placed(Policy(streamed=(5,)))
    x = torch.randn(3, 16)
    with pytest.raises(RuntimeError):
        Block.forward(module.blocks[2], x)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(streamed=(3,)),
        Policy(streamed=(5,), recompute="blocks"),
        Policy(streamed=(4,), offload_activations=True),
        Policy(streamed=(1,), recompute="blocks", offload_activations=True),
    ],
)
def test_gradients_are_bitwise_those_of_a_resident_network(policy: Policy) -> None:
    plain, module = placed(policy)
    for turn in range(3):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(turn))
        grads = []
        for net in (plain, module):
            leaf = x.clone().requires_grad_()
            net(leaf).square().sum().backward()
            grads.append(leaf.grad)
        assert torch.equal(*grads)
        with torch.no_grad():  # a preview between two steps
            assert torch.equal(plain(x), module(x))


def test_a_forward_pass_without_a_backward_one_leaves_nothing_behind() -> None:
    plain, module = placed(Policy(streamed=(5,), offload_activations=True))
    x = torch.randn(3, 4, requires_grad=True)
    module(x)  # abandoned: an error elsewhere, say
    module(x).sum().backward()
    first = x.grad
    x.grad = None
    plain(x).sum().backward()
    assert torch.equal(first, x.grad)


def test_blocks_may_be_left_out() -> None:
    plain, module = placed(Policy(streamed=(5,)))
    x = torch.randn(3, 16)
    expected, found = x, x
    for i in (0, 3, 1):
        expected, found = plain.blocks[i](expected), module.blocks[i](found)
    assert torch.equal(expected, found)


@pytest.mark.parametrize("storage", ["fp8_scaled", "int8"])
def test_8_bits_travel_with_their_scales(storage: Storage) -> None:
    _, resident = placed(Policy(storage=storage))
    _, streamed = placed(Policy(storage=storage, streamed=(4,)))
    x = torch.randn(3, 4)
    assert torch.equal(resident(x), streamed(x))
    assert streamed.blocks[0].inner.weight.dtype == DTYPES[storage]


@pytest.mark.parametrize("storage", ["fp8_scaled", "int8"])
def test_8_bit_layers_outside_the_blocks_visit_with_their_scales(storage: Storage) -> None:
    traits = Traits(stacks=("blocks",), quantize=(r"first\.weight",))
    _, resident = placed(Policy(storage=storage), traits=traits)
    plain, streamed = placed(Policy(storage=storage, streamed=(4,)), traits=traits)
    x = torch.randn(3, 4)
    for _ in range(2):
        assert torch.equal(resident(x), streamed(x))
    assert not torch.equal(resident(x), plain(x))
    assert streamed.first.weight.dtype == DTYPES[storage]
    assert not streamed.first.weight.numel(), "between its calls it is nowhere on the device"


def test_parking_gives_the_slots_back() -> None:
    plain, module = placed(Policy(streamed=(4,)))
    x = torch.randn(3, 4)
    module(x)
    stream = module.__dict__["_musubi_stream"]
    assert len(away(module)) < 4
    stream.leave()
    assert len(away(module)) == 4
    assert torch.equal(park(module, CPU)(x), plain(x))


def test_too_many_blocks_are_refused_where_they_were_asked_for() -> None:
    with pytest.raises(ConfigError, match="would swap 6 blocks"):
        placed(Policy(streamed=(6,)))
    with torch.device("meta"):
        module = Net()
    lenient = PolicyPlacement(TRAITS, Policy(streamed=(6,)), CPU, strict=False)
    lenient.prepare(module, {n: t.dtype for n, t in module.state_dict().items()})
    assert lenient.home("blocks.0.inner.weight") is not None


def test_a_component_without_a_policy_is_loaded_plainly() -> None:
    from musubi import registry

    dit = registry.find("wan").dit
    assert placer({}, CPU)(dit) is None
    assert placer({dit.name: Policy()}, CPU)(dit) is None
    assert placer({dit.name: Policy(streamed=(1,))}, CPU)(dit) is not None


def test_a_resident_network_can_still_be_copied() -> None:
    plain, module = placed(Policy(recompute="blocks"))
    twin = copy.deepcopy(module)
    x = torch.randn(3, 4)
    assert torch.equal(twin(x), plain(x))
