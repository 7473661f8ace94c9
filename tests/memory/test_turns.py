"""Networks that take turns on the device: the same numbers, and only those that work are there."""

import torch
from torch import nn

from musubi.memory.turns import Turns

CPU = torch.device("cpu")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()
    made.requires_grad_(False)
    made[2].bias.requires_grad_()  # what is trained
    return made


def devices(made: nn.Module) -> set[int]:
    return {t.data_ptr() for t in (*made.parameters(), *made.buffers())}


def test_a_network_that_rests_and_wakes_gives_the_same_numbers() -> None:
    x = torch.randn(3, 4)
    plain = {name: network(seed)(x) for name, seed in (("low", 1), ("high", 2))}
    turns = Turns(CPU)
    made = {"low": network(1), "high": network(2)}
    for name, one in made.items():
        turns.add(name, one)
    assert set(turns.resting) == {"low", "high"}
    for name in ("low", "high", "high", "low"):
        turns.take([name])
        assert set(turns.resting) == set(made) - {name}
        out = made[name](x)
        assert torch.equal(out, plain[name])
        out.sum().backward()
        assert made[name][2].bias.grad is not None
    turns.take(["low", "high"])
    assert not turns.resting


def test_what_is_trained_stays_where_it_is() -> None:
    one, turns = network(1), Turns(CPU)
    trained, frozen = one[2].bias.data_ptr(), one[0].weight.data_ptr()
    turns.add("one", one)
    assert one[2].bias.data_ptr() == trained
    assert one[0].weight.data_ptr() != frozen
    home = one[0].weight.data_ptr()
    turns.take(["one"])
    assert one[0].weight.data_ptr() != home
    turns.take([])
    assert one[0].weight.data_ptr() == home  # copied to the host once
