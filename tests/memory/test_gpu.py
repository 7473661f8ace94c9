"""Memory policies where they matter: what lies where on a device, and that a step never waits for it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from musubi import registry
from musubi.config.train import TrainConfig
from musubi.lora.adapter import Adapters
from musubi.memory.apply import PolicyPlacement, park
from musubi.memory.compiled import Compiler
from musubi.memory.stream import SLOTS
from musubi.plugin import Policy, Traits
from musubi.testing.conformance import every_block, everything
from musubi.testing.subject import Subject
from musubi.train import optim, schedule
from musubi.train.offload import Mirror
from musubi.train.step import FlowMatchingLoss
from musubi.train.update import Update

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # the compiler's advice
]
CUDA = torch.device("cuda")
TRAITS = Traits(stacks=("blocks",), quantize=(r"blocks\.\d+\.inner\.weight",))
WIDTH, COUNT, TOKENS = 1024, 12, 2048
BLOCK = 2 * WIDTH * WIDTH * 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH, bias=False)
        self.outer = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.tanh(self.inner(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(COUNT))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def placed(policy: Policy) -> tuple[Net, int]:
    """A network on the device under a policy, and the bytes that it takes there."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.manual_seed(0)
    with torch.device("meta"):
        module = Net().requires_grad_(False)
    placement = PolicyPlacement(TRAITS, policy, CUDA)
    placement.prepare(module, {n: torch.float32 for n, _ in module.named_parameters()})
    for name, parameter in list(module.named_parameters()):
        made = torch.randn(parameter.shape) * WIDTH**-0.5
        for stored, tensor in (placement.store(name, made, None) or {name: made}).items():
            home = placement.home(stored)
            tensor = tensor.to(CUDA) if home is None else home.copy_(tensor)
            path, _, leaf = stored.rpartition(".")
            owner = module.get_submodule(path)
            if leaf in owner._parameters:
                owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
            else:
                owner._buffers[leaf] = tensor
    placement.finish(module)
    return module, torch.cuda.memory_allocated() - before


def test_streamed_blocks_take_two_slots_and_give_them_back() -> None:
    plain, whole = placed(Policy())
    assert whole == COUNT * BLOCK
    module, none = placed(Policy(streamed=(COUNT,)))
    assert none == 0
    x = torch.randn(4, WIDTH, device=CUDA)
    with torch.no_grad():
        expected = plain(x)  # and what the libraries take at their first product
        before = torch.cuda.memory_allocated()
        assert torch.equal(module(x), expected)
    assert torch.cuda.memory_allocated() - before <= SLOTS * BLOCK + 2**20
    park(module, torch.device("cpu"))
    assert torch.cuda.memory_allocated() - before <= 2**20
    park(module, CUDA)
    with torch.no_grad():
        assert torch.equal(module(x), expected)


def test_the_homes_of_streamed_blocks_are_page_locked() -> None:
    module, _ = placed(Policy(streamed=(COUNT,)))
    stream = module.__dict__["_musubi_stream"]
    assert len(stream.homes) == COUNT
    # A tensor that starts where the buffer does: the storage starts before the locked page.
    assert all(torch.from_numpy(home.buffer.numpy()).is_pinned() for home in stream.homes.values())


def test_parked_activations_leave_the_device() -> None:
    peaks, grads = [], []
    for offload in (False, True):
        module, _ = placed(Policy(recompute="blocks", offload_activations=offload))
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            x = torch.randn(
                TOKENS, WIDTH, device=CUDA, generator=torch.Generator(CUDA).manual_seed(0)
            ).requires_grad_()
            module(x).square().mean().backward()
            torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        grads.append(x.grad)
        del module
    assert torch.equal(*grads)
    # All but a few of the inputs of the blocks.
    assert peaks[0] - peaks[1] >= (COUNT - 5) * TOKENS * WIDTH * 4


def update_of(lora: Adapters, *, away: bool = False, lr: float = 1e-3) -> Update:
    settings = TrainConfig(learning_rate=lr)
    groups = lora.param_groups(lr)
    mirror = Mirror(list(lora.parameters())) if away else None
    optimizer = optim.create(
        "AdamW", groups if mirror is None else mirror.groups(groups), lr=lr, arguments={}
    )
    return Update(
        list(lora.parameters()),
        optimizer,
        schedule.create(settings, optimizer, 100),
        None,
        settings.max_grad_norm,
        mirror=mirror,
    )


def attached(subject: Subject, policy: Policy) -> tuple[nn.Module, Adapters]:
    dit = subject.dit(None, policy, Compiler())
    targets = subject.architecture.dit.traits.lora
    assert targets is not None
    torch.manual_seed(0)
    lora = Adapters.create(dit, targets, rank=2, alpha=1.0)
    lora.attach()
    lora.train()
    return dit, lora


def policies(subject: Subject) -> dict[str, Policy]:
    everywhere = every_block(subject)
    return {
        "plain": Policy(),
        "streamed": Policy(streamed=everywhere),
        "all": Policy(streamed=everywhere, recompute="attention", offload_activations=True),
        "blocks": Policy(streamed=everywhere, recompute="blocks", offload_activations=True),
        "8 bits": Policy(streamed=everywhere, storage="fp8_scaled", recompute="blocks"),
        "compiled": everything(subject),
    }


@pytest.mark.parametrize("policy", ["plain", "streamed", "all", "blocks", "8 bits", "compiled"])
@pytest.mark.parametrize("name", registry.names())
def test_nothing_inside_a_step_waits_for_the_device(name, policy, tmp_path) -> None:
    torch._dynamo.reset()
    subject = Subject(name, tmp_path, CUDA)
    task = subject.tasks[0]
    batch = subject.batch(task, subject.records(task, 2))
    batch = {
        n: [t.cpu().pin_memory() for t in v] if isinstance(v, list) else v.cpu().pin_memory()
        for n, v in batch.items()
    }
    dit, lora = attached(subject, policies(subject)[policy])
    update = update_of(lora)
    objective = FlowMatchingLoss.of_one(
        subject.runtime(task),
        task,
        dit,
        TrainConfig(timestep_sampling="shift"),
        CUDA,
        lambda: torch.autocast("cuda", torch.bfloat16),
        0,
    )
    for step in range(5):
        strict = step >= 3  # what is compiled, tuned and locked at first is then there
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if strict else "default")
        try:
            update.backward(objective.training_loss(batch, step, 0))
            norm = update.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(norm)


def test_an_optimizer_on_the_host_makes_the_same_steps(tmp_path) -> None:
    subject = Subject("wan", tmp_path, CUDA)
    task = subject.tasks[0]
    batch = subject.batch(task, subject.records(task, 2))
    ends = []
    for away in (False, True):
        dit, lora = attached(subject, Policy())
        update = update_of(lora, away=away)
        objective = FlowMatchingLoss.of_one(
            subject.runtime(task), task, dit, TrainConfig(), CUDA, nullcontext, 0
        )
        for step in range(3):
            update.backward(objective.training_loss(batch, step, 0))
            update.step()
        states = update.optimizer.state.values()
        where = {t.device.type for s in states for t in s.values() if t.ndim}
        assert where == {"cpu" if away else "cuda"}
        ends.append(torch.cat([p.detach().flatten() for p in lora.parameters()]))
    assert all(torch.isfinite(end).all() for end in ends)
    assert (ends[0] - ends[1]).norm() / ends[0].norm() < 1e-3


def test_of_networks_that_take_turns_only_one_takes_memory() -> None:
    from musubi.memory.turns import Turns

    device = torch.device("cuda")
    made = {name: nn.Linear(2048, 2048, device=device).requires_grad_(False) for name in "ab"}
    torch.cuda.synchronize()
    both = torch.cuda.memory_allocated()
    turns = Turns(device)
    for name, one in made.items():
        turns.add(name, one)
    assert torch.cuda.memory_allocated() < both - 2 * 2048**2 * 4 + 2**20
    x = torch.randn(2, 2048, device=device)
    for name in "abab":
        turns.take([name])
        assert torch.isfinite(made[name](x)).all()
        assert torch.cuda.memory_allocated() < both - 2048**2 * 4 + 2**20
