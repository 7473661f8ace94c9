import copy

import torch
from torch import nn

from musubi.memory import recompute
from musubi.plugin import Traits

TRAITS = Traits(stacks=("blocks",))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.drop = nn.Dropout(0.3)
        self.calls = 0

    def forward(self, x: torch.Tensor, scale: torch.Tensor, *, plus: float = 0.0) -> torch.Tensor:
        self.calls += 1
        return x + self.drop(torch.tanh(self.inner(x))) * scale + plus


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.blocks = nn.ModuleList([Block(8) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x, torch.tensor(0.5), plus=0.25)
        return x


def net(frozen: bool = False) -> Net:
    torch.manual_seed(0)
    module = Net()
    if frozen:  # as under adapters: nothing that enters a block requires a gradient
        module.first.requires_grad_(False)
    return module


def loss_and_grads(module: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    loss = module(torch.randn(5, 4)).square().mean()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_bitwise_equal_with_dropout() -> None:
    for frozen in (False, True):
        plain, wrapped = net(frozen), net(frozen)
        assert recompute.apply(wrapped, TRAITS) == 3
        loss, grads = loss_and_grads(plain)
        loss2, grads2 = loss_and_grads(wrapped)
        assert torch.equal(loss, loss2)
        assert grads.keys() == grads2.keys()
        assert all(torch.equal(grads[n], grads2[n]) for n in grads)
        assert any(g.abs().sum() > 0 for g in grads.values())


def test_blocks_run_twice_with_gradients_and_once_without() -> None:
    module = net()
    recompute.apply(module, TRAITS)
    loss_and_grads(module)
    assert [b.calls for b in module.blocks] == [2, 2, 2]
    with torch.no_grad():
        module(torch.randn(1, 4))
    assert [b.calls for b in module.blocks] == [3, 3, 3]


def test_names_stay() -> None:
    module = net()
    names = list(module.state_dict())
    recompute.apply(module, TRAITS)
    assert list(module.state_dict()) == names
    assert [n for n, _ in module.named_modules()] == [n for n, _ in net().named_modules()]


def test_applying_twice_is_once_and_removing_undoes_it() -> None:
    module = net()
    recompute.apply(module, TRAITS)
    recompute.apply(module, TRAITS)
    loss_and_grads(module)
    assert module.blocks[0].calls == 2
    recompute.remove(module, TRAITS)
    loss_and_grads(module)
    assert module.blocks[0].calls == 3
    assert "forward" not in module.blocks[0].__dict__


def test_a_deep_copy_runs_its_own_blocks() -> None:
    module = net()
    recompute.apply(module, TRAITS)
    twin = copy.deepcopy(module)
    loss_and_grads(twin)
    assert twin.blocks[0].calls == 2
    assert module.blocks[0].calls == 0
    assert module.blocks[0].inner.weight.grad is None
