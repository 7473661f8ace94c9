"""Text encoders, which are other libraries' modules, under the same policies as a denoiser."""

from pathlib import Path

import pytest
import torch

from musubi import registry
from musubi.memory.apply import placer
from musubi.plugin import Policy, Prompt
from musubi.testing import twins
from musubi.weights.nets import Nets

ENCODERS = [("wan", "t5"), ("hunyuan_video", "text_encoder1"), ("hunyuan_video", "text_encoder2")]


@pytest.mark.parametrize(("arch", "name"), ENCODERS)
def test_streamed_encoders_say_the_same_and_8_bits_nearly(
    arch: str, name: str, tmp_path: Path
) -> None:
    architecture = registry.find(arch)
    path = twins.write_twin(architecture.component(name), tmp_path)
    task = architecture.tasks[0]
    options = {o.name: o.default for o in architecture.options}
    runtime = architecture.runtime(architecture, task, options)

    def said(policy: Policy) -> torch.Tensor:
        nets = Nets(
            architecture,
            {name: path},
            device=torch.device("cpu"),
            dtypes={name: torch.float32},
            place=placer({name: policy}, torch.device("cpu")),
        )
        with torch.no_grad():
            records = runtime.encode_text(nets, name, [Prompt(text="a red ball"), Prompt(text="b")])
        return torch.cat([t.float().flatten() for record in records for t in record.values()])

    plain = said(Policy())
    assert torch.equal(said(Policy(streamed=(9,))), plain), "all of them, however many there are"
    eight = said(Policy(storage="fp8_scaled"))
    assert 0 < (eight - plain).norm() / plain.norm() < 0.2
    assert torch.equal(said(Policy(storage="fp8_scaled", streamed=(1,))), eight)
