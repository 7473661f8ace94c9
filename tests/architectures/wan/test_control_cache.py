"""Control blocks: a cache of steps adds no hint twice, and 8 bits and slices reach them."""

import re

import pytest
import torch

from musubi.architectures.wan import ARCHITECTURE
from musubi.flow.step_cache import StepCache
from musubi.memory import ffn_chunks, quantized
from musubi.testing.twins import build_twin


@pytest.mark.parametrize(("layers", "control"), [(4, 2), (3, 2), (2, 2)])
@torch.no_grad()
def test_a_step_left_out_gives_what_the_same_step_gave(layers, control):
    numbers = {"num_layers": layers, "vace_layers": control, "vace_dim": 96}
    network = build_twin(ARCHITECTURE.dit, numbers=numbers)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 2, 4, 6, generator=generator)
    given = torch.randn(1, 96, 2, 4, 6, generator=generator)
    words, t = [torch.randn(5, 32, generator=generator)], torch.tensor([0.5])
    calls = []
    network.blocks[-1].register_forward_hook(lambda *_: calls.append(1))

    def call():
        return network(x, t, words, control=given, control_scale=0.7)

    cache = StepCache(network, ARCHITECTURE.dit.traits.stacks, (False, True))
    whole, without = (cache.run("positive", step, call) for step in range(2))
    assert len(calls) == 1, "the second step leaves the blocks out"
    torch.testing.assert_close(without, whole, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole, network(x, t, words, control=given, control_scale=0.0))


def test_they_are_stored_and_sliced_as_the_blocks_are():
    traits = ARCHITECTURE.dit.traits
    network = build_twin(ARCHITECTURE.dit, numbers={"vace_layers": 2, "vace_dim": 96})
    names = quantized.convert(network, traits, quantized_matmul=False)
    stems = [re.sub(r"\d+", "N", name) for name in names]
    ordinary = [stem for stem in stems if stem.startswith("blocks.")]
    assert [s for s in stems if s.startswith("vace_")] == [f"vace_{stem}" for stem in ordinary]
    assert ffn_chunks.apply(network, traits, 2) == 4
