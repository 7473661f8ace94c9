from dataclasses import replace

import pytest
import torch
from torch import nn

from musubi import registry
from musubi.estimate.cards import named, started
from musubi.estimate.figures import work_of
from musubi.estimate.trace import Recorder
from musubi.memory import quantized
from musubi.plan import captions, networks
from musubi.plan.workload import Network
from musubi.plugin import Policy, Prompt
from musubi.testing import twins
from musubi.weights.nets import Nets

WAN = registry.find("wan")
GIB = 2**30
ENCODERS = [
    (name, c.name)
    for name in ("wan", "hunyuan_video")
    for c in registry.find(name).components
    if c.role == "text"
]


def network(arch, name, *, full=True):
    component = registry.find(arch).component(name)
    numbers = component.full if full else component.tiny
    return Network(component, numbers, torch.bfloat16 if full else torch.float32)


def test_an_encoder_in_8_bits_takes_the_time_and_memory_that_were_measured():
    # `musubi bench --phase text --fp8_scaled` on an H200, a caption of a dozen tokens: this case
    # set what expanding 8-bit weights costs.
    trace = captions.record(WAN, network("wan", "t5"), eight=True, tokens=12)
    card, work = named("H200"), work_of(trace.ops)
    assert max(card.seconds(work), started(work)) == pytest.approx(0.0453, rel=0.1)
    most = networks.text(WAN, network("wan", "t5"), Policy(storage="fp8_scaled"), card)
    assert most.device / GIB == pytest.approx(6.62, rel=0.03)
    assert 0.0453 < most.seconds < 1.25 * 0.0453


@pytest.mark.parametrize(("arch", "name"), ENCODERS)
def test_starting_small_operations_bounds_an_encoder(arch, name):
    found = network(arch, name)
    architecture = registry.find(arch)
    trace = captions.record(architecture, found, eight=False)
    layers = sum(op.kind == "product" for op in trace.ops)
    assert len(trace.ops) > 2 * layers  # and so it was run, not counted
    fast = replace(named("H200"), product=1e30, memory=1e30)
    assert networks.text(architecture, found, Policy(), fast).seconds == pytest.approx(
        8e-6 * sum(op.name != "_unsafe_view" for op in trace.ops), rel=0.02
    )


@pytest.mark.parametrize(("arch", "name"), ENCODERS)
@pytest.mark.parametrize("eight", [False, True])
def test_a_caption_peaks_where_it_was_recorded(arch, name, eight, tmp_path):
    architecture = registry.find(arch)
    component = architecture.component(name)
    torch.manual_seed(0)
    module = component.build(**component.tiny).eval().requires_grad_(False)
    if eight:
        quantized.convert(module, component.traits, quantized_matmul=False)
    if callable(finish := getattr(module, "finish", None)):
        finish()
    tokenizer = twins.write_tokenizer(tmp_path / "tokenizer")
    nets = Nets(architecture, {}, device="cpu", tokenizers={name: tokenizer})
    nets.put(name, module)
    runtime = architecture.runtime(architecture, architecture.tasks[0], {})
    inner, recorder = module.forward, Recorder()
    sizes = []

    def forward(ids, *more):
        sizes.append(ids.shape[1])
        with recorder:
            return inner(ids, *more)

    module.forward = forward
    with torch.no_grad():
        runtime.encode_text(nets, name, [Prompt(text="a red ball bounces")])
    found = captions.record(
        architecture, network(arch, name, full=False), eight=eight, tokens=sizes[0]
    )
    assert found.peak == pytest.approx(recorder.trace.peak, rel=0.15)


def test_an_encoder_that_reads_captions_otherwise_is_counted():
    class Runtime:
        def encode_text(self, nets, component, captions):
            return nets.tokenizer(component).encode(captions[0])

    odd = replace(WAN, runtime=lambda *_: Runtime())
    component = replace(WAN.component("t5"))
    found = Network(component, component.full, torch.bfloat16)
    usual = captions.record(WAN, found, eight=True)
    again = Network(replace(component), component.full, torch.bfloat16)
    counted = captions.record(odd, again, eight=True)
    card = named("H200")
    assert card.seconds(work_of(counted.ops)) == pytest.approx(
        card.seconds(work_of(usual.ops)), rel=0.2
    )
    assert len(counted.ops) == 4 * sum(
        isinstance(m, nn.Linear)
        for m in networks.on_meta(component, component.full, torch.bfloat16).modules()
    )
