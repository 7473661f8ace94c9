"""A cache of steps leaves out the blocks of a network with control blocks, and adds no hint twice."""

import pytest
import torch

from musubi.architectures.wan import ARCHITECTURE
from musubi.flow.step_cache import StepCache
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
