"""How policies nest around a block, what is compiled, and what a made-up batch looks like."""

import pytest
import torch
from torch import nn

from musubi import registry
from musubi.errors import ConfigError
from musubi.estimate.example import example_batch
from musubi.memory import compiled, recompute
from musubi.memory.blocks import unwrap, wrap
from musubi.memory.compiled import Compiler
from musubi.plugin import Traits


class Add(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_the_last_policy_is_outermost_and_one_can_be_taken_off() -> None:
    block, seen = Add(), []

    def named(name: str):
        def around(block: nn.Module, inner, x: torch.Tensor) -> torch.Tensor:
            seen.append(name)
            return inner(x) * 2

        return around

    for name in ("a", "b"):
        wrap(block, name, named(name))
    assert block(torch.ones(1)).item() == 8
    assert seen == ["b", "a"]
    unwrap(block, "a")
    assert block(torch.ones(1)).item() == 4
    unwrap(block, "a")
    unwrap(block, "b")
    assert "forward" not in block.__dict__
    assert block(torch.ones(1)).item() == 2


def test_a_forward_of_its_own_comes_back() -> None:
    block = Add()
    block.forward = lambda x: x + 10  # type: ignore[method-assign]
    wrap(block, "a", lambda block, inner, x: inner(x))
    assert block(torch.ones(1)).item() == 11
    unwrap(block, "a")
    assert block(torch.ones(1)).item() == 11


def test_attention_over_many_keys_is_kept_and_over_few_is_not() -> None:
    from torch.utils.checkpoint import CheckpointPolicy

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    q, long, short = torch.zeros(1, 2, 64, 8), torch.zeros(1, 2, 64, 8), torch.zeros(1, 2, 8, 8)
    assert recompute._choose(None, kernel, q, long, long) == CheckpointPolicy.MUST_SAVE
    assert recompute._choose(None, kernel, q, short, short) == CheckpointPolicy.PREFER_RECOMPUTE
    product = torch.ops.aten.mm.default
    assert recompute._choose(None, product, q, long) == CheckpointPolicy.PREFER_RECOMPUTE


def test_without_triton_compiling_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--compile needs the package 'triton'") as error:
        compiled.check(Compiler(), torch.device("cuda"))
    assert "pip install triton" in str(error.value.fix)
    compiled.check(Compiler(), torch.device("cpu"))
    compiled.check(Compiler(backend="eager"), torch.device("cuda"))


def test_one_trace_serves_every_block_with_and_without_gradients() -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Linear() for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.inner(x))

    torch._dynamo.reset()
    net = Net()
    compiled.apply(net, Traits(stacks=("blocks",)), Compiler(backend=backend, fullgraph=True))
    for _ in range(2):
        net(torch.randn(3, 8)).sum().backward()
    assert len(graphs) == 1
    with torch.no_grad():
        net(torch.randn(3, 8))
    assert len(graphs) == 2
    for rows in (5, 6, 7):  # the second size brings a version for every other
        net(torch.randn(rows, 8)).sum().backward()
    assert len(graphs) == 3


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_a_made_up_batch_has_the_schema_of_its_task(name: str) -> None:
    architecture = registry.find(name)
    for variant in architecture.variants:
        task = architecture.task(variant.task)
        batch = example_batch(
            architecture, task, variant.numbers, width=64, height=32, frames=9, batch=2
        )
        fields = (*task.schema.media, *task.schema.text)
        assert set(batch) == {f.name for f in fields if not f.optional}
        assert tuple(batch["latents"].shape) == (2, 16, 3, 4, 8)
        for field in fields:
            if not field.optional:
                assert batch[field.name][0].ndim == len(field.dims)
