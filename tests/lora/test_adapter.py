"""Adapters: what they add, to which layers, and what dropout, recomputation and limits do to them."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from musubi.errors import CheckpointError, ConfigError
from musubi.lora.adapter import Adapters
from musubi.lora.delta import Pair
from musubi.plugin import LoraTargets

TARGETS = LoraTargets(
    include=(r"blocks\.\d+\..*",), exclude=(r".*norm.*",), groups={"mlp": (r"blocks\.\d+\.ffn",)}
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.ffn, self.norm_in = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.ffn(torch.tanh(self.q(self.norm_in(x))))


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy().requires_grad_(False)


def filled(toy, **settings):
    made = Adapters.create(toy, TARGETS, rank=2, alpha=1.0, **settings)
    for parameter in made.parameters():
        parameter.data.normal_()
    made.attach()
    return made


def test_a_fresh_adapter_changes_nothing_and_nothing_is_renamed(toy):
    x, names = torch.randn(3, 6), list(toy.state_dict())
    before = toy(x)
    made = Adapters.create(toy, TARGETS, rank=2)
    made.attach()
    assert torch.equal(toy(x), before) and list(toy.state_dict()) == names
    assert list(made.modules_by_path) == [f"blocks.{i}.{n}" for i in (0, 1) for n in ("q", "ffn")]


def test_the_change_is_that_of_the_product(toy):
    x = torch.randn(3, 6)
    made = filled(toy)
    made.multiplier = 0.7
    with_hooks = toy(x)
    made.detach()
    for name, pair in made.tensors().items():
        toy.get_parameter(name).data += 0.7 * 0.5 * pair.up @ pair.down
    torch.testing.assert_close(with_hooks, toy(x))


def test_the_sum_is_rounded_once(toy):
    layer = toy.blocks[0].q.to(torch.bfloat16)
    x = torch.randn(64, 6, dtype=torch.bfloat16)
    made = filled(toy)
    adapter = made.modules_by_path["blocks.0.q"]
    made.detach()
    out = layer(x)
    delta = (x @ adapter.down.bfloat16().T) @ (0.5 * adapter.up).bfloat16().T
    exact = (out.float() + delta.float()).bfloat16()
    assert torch.equal(adapter(layer, x, out), exact)


@pytest.mark.parametrize("kind", ["dropout", "rank_dropout", "module_dropout"])
def test_a_recomputed_block_draws_the_same(toy, kind):
    x, grads = torch.randn(3, 6), []
    made = filled(toy, **{kind: 0.5})
    for again in (False, True):
        torch.manual_seed(3)
        made.zero_grad()
        out = checkpoint(toy, x, use_reentrant=False) if again else toy(x)
        out.square().sum().backward()
        grads.append([p.grad.clone() for p in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    made.eval()
    assert torch.equal(toy(x), toy(x))


def test_rank_dropout_keeps_the_mean(toy):
    made = filled(toy, rank_dropout=0.25)
    adapter = made.modules_by_path["blocks.0.q"]
    x, zero = torch.randn(1, 6).expand(20000, 6), torch.zeros(20000, 6)
    layer = toy.blocks[0].q
    dropped = adapter(layer, x, zero).mean(0)
    torch.testing.assert_close(dropped, adapter.eval()(layer, x, zero)[0], atol=0.05, rtol=0.05)


def test_it_compiles_without_a_break(toy):
    x = torch.randn(3, 6)
    filled(toy, module_dropout=0.5).eval()
    compiled = torch.compile(toy, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), toy(x))


def test_autocast(toy):
    filled(toy)
    with torch.autocast("cpu", torch.bfloat16):
        out = toy(torch.randn(3, 6))
    assert torch.isfinite(out).all()


def test_groups_and_patterns(toy):
    made = Adapters.create(toy, TARGETS, rank=2, groups=["mlp"], exclude=[r"blocks\.0", "nothing"])
    assert list(made.modules_by_path) == ["blocks.0.ffn", "blocks.1.ffn"]
    assert len(made.notes) == 2 and "whole name" in made.notes[0]
    kept = Adapters.create(toy, TARGETS, rank=2, exclude=[".*"], include=[r".*\.0\.norm_in"])
    assert list(kept.modules_by_path) == ["blocks.0.norm_in"]


def test_nothing_left_is_refused(toy):
    with pytest.raises(ConfigError, match=r"No layer is left.*head"):
        Adapters.create(toy, TARGETS, rank=2, exclude=[".*"])
    with pytest.raises(ConfigError, match="Did you mean 'mlp'"):
        Adapters.create(toy, TARGETS, rank=2, groups=["mpl"])
    with pytest.raises(ConfigError, match="regular expression"):
        Adapters.create(toy, TARGETS, rank=2, exclude=["("])


def test_limits_follow_the_formula(toy):
    made = filled(toy)
    norms = {p: (0.5 * pair.up @ pair.down).norm() for p, pair in made.tensors().items()}
    limit = float(sorted(norms.values())[1])
    count, mean, most = made.limit_norms(limit * 1.0001)
    assert count == 2 and most == pytest.approx(limit, rel=1e-3) and mean <= most
    after = {p: (0.5 * pair.up @ pair.down).norm() for p, pair in made.tensors().items()}
    for path, norm in norms.items():
        assert float(after[path]) == pytest.approx(min(float(norm), limit), rel=1e-3)


def test_groups_for_the_optimizer(toy):
    made = filled(toy)
    assert [g["lr"] for g in made.param_groups(1e-4)] == [1e-4]
    down, up = made.param_groups(1e-4, 16)
    assert (down["lr"], up["lr"], up["name"]) == (1e-4, 16e-4, "lora_up")
    assert len(down["params"]) + len(up["params"]) == len(list(made.parameters()))


def test_loading_keeps_the_change_and_names_what_lacks(toy):
    made = filled(toy)
    pair = Pair(torch.randn(2, 6), torch.randn(6, 2), 8.0)
    assert made.load({"blocks.0.q": pair}) == ["blocks.0.ffn", "blocks.1.q", "blocks.1.ffn"]
    torch.testing.assert_close(made.tensors()["blocks.0.q.weight"].matrix(), pair.matrix())
    with pytest.raises(CheckpointError, match="rank"):
        made.load({"blocks.0.q": Pair(torch.randn(3, 6), torch.randn(6, 3))})
    with pytest.raises(CheckpointError, match="head"):
        made.load({"head": pair})
    again = Adapters.from_deltas(toy, {"blocks.1.q": pair})
    assert again.tensors()["blocks.1.q.weight"].alpha == 8.0
