"""Every kind under every memory policy: the same numbers, and nothing changed before the first step."""

import warnings

import pytest
import torch
from torch import nn

from musubi.lora.adapter import Adapters
from musubi.lora.fresh import Kind
from musubi.memory.apply import at_home
from musubi.plugin import LoraTargets, Policy
from musubi.testing.subject import Subject

KINDS = {
    "lora": Kind(),
    "pissa": Kind(init="pissa"),
    "loha": Kind(name="loha"),
    "lokr": Kind(name="lokr", factor=8, decompose_both=True),
    "dora": Kind(name="dora"),
    "dora of lokr": Kind(name="dora", direction="lokr"),
    "oft": Kind(name="oft", rescaled=True, constraint=0.1),
    "full": Kind(name="full"),
}
POLICIES = {
    "streamed": Policy(streamed=(2,), recompute="attention", offload_activations=True),
    "sliced": Policy(ffn_chunks=2),
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return Subject("wan", tmp_path_factory.mktemp("twins"))


@pytest.fixture(scope="module")
def records(subject):
    return subject.records(subject.tasks[0], 1)


def adapted(subject, kind, policy, moved=True):
    dit = subject.dit(None, policy)
    dit.requires_grad_(False)
    torch.manual_seed(0)
    made = Adapters.create(
        dit,
        subject.architecture.dit.traits.lora,
        rank=4,
        alpha=2.0,
        kind=kind,
        homes=at_home(dit),
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters() if moved else ():
            parameter.add_(0.02 * torch.randn_like(parameter))
    made.attach()
    return dit, made


def outcome(subject, records, kind, policy):
    dit, made = adapted(subject, kind, policy)
    task = subject.tasks[0]
    out = subject.prediction(task, dit, records)
    out.square().mean().backward()
    return [out.detach(), *(p.grad for p in made.parameters())]


@pytest.mark.parametrize("kind", KINDS)
def test_policies_agree(subject, records, kind):
    plain = outcome(subject, records, KINDS[kind], Policy())
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in plain)
    assert all(bool(g.any()) for g in plain)
    for name, policy in POLICIES.items():
        found = outcome(subject, records, KINDS[kind], policy)
        for a, b in zip(plain, found, strict=True):
            if name == "sliced":
                torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-4)
            else:
                assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", KINDS)
def test_they_compile_without_a_break(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 24).requires_grad_(False))
    made = Adapters.create(net, LoraTargets(include=(".*",)), rank=2, alpha=1.0, kind=KINDS[kind])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.attach()
    x, found = torch.randn(3, 16, requires_grad=True), []
    for run in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        made.zero_grad()
        with warnings.catch_warnings():
            # The compiler's own: it makes a function's class to look at it.
            warnings.filterwarnings("ignore", message=".*should not be instantiated")
            out = run(x)
            (to_x,) = torch.autograd.grad(out.square().sum(), x, retain_graph=True)
            out.square().sum().backward()
        found.append([out.detach(), to_x, *(p.grad.clone() for p in made.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [Policy(), Policy(storage="fp8_scaled", streamed=(2,))])
def test_a_fresh_one_changes_nothing(subject, records, kind, policy):
    dit, made = adapted(subject, KINDS[kind], policy, moved=False)
    task = subject.tasks[0]
    with torch.no_grad():
        found = subject.prediction(task, dit, records)
        made.detach()
        assert torch.equal(found, subject.prediction(task, dit, records))


@pytest.mark.parametrize("kind", ["lora", "dora", "dora of lokr", "oft"])
@pytest.mark.parametrize("storage", ["fp8_scaled", "int8"])
def test_eight_bits_are_expanded_where_the_kind_looks_at_the_weight(
    subject, records, kind, storage
):
    policy = Policy(storage=storage, streamed=(1,))
    found = outcome(subject, records, KINDS[kind], policy)
    plain = outcome(subject, records, KINDS[kind], Policy())
    error = (found[0] - plain[0]).norm() / plain[0].norm()
    assert 0 < error < 0.1 and all(bool(torch.isfinite(t).all()) for t in found)
