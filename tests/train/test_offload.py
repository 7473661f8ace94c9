"""An optimizer in host memory makes the steps that one on the device makes."""

import pytest
import torch
from torch import nn

from musubi.plugin import Quiet
from musubi.train import offload
from musubi.train.offload import Mirror
from musubi.train.update import Update


class Constant:
    def step(self) -> None:
        pass


def trained(*, mirrored: bool, steps: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]
    groups = [{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.01}]
    mirror = Mirror(parameters) if mirrored else None
    optimizer = torch.optim.AdamW(groups if mirror is None else mirror.groups(groups))
    update = Update(parameters, optimizer, Constant(), None, 1.0, mirror=mirror)
    for step in range(steps):
        # In the third step the other has no gradient.
        learning = parameters[:1] if step == 2 else parameters
        for part in (0.25, 0.75):  # accumulated
            loss = sum((p * (step + 1)).square().sum() for p in learning)
            update.backward(loss * part)
            assert not mirrored or all(p.grad is None for p in parameters)
        update.step()
        with torch.no_grad():
            parameters[1].clamp_(-1, 1)  # as a limit on norms does, behind the optimizer's back
    assert all(p.grad is None for p in parameters)
    return [p.detach() for p in parameters]


def test_the_steps_are_the_same() -> None:
    for here, there in zip(trained(mirrored=False), trained(mirrored=True), strict=True):
        assert torch.equal(here, there)


def test_weights_that_never_moved_would_be_noticed() -> None:
    assert not torch.equal(trained(mirrored=True)[0], trained(mirrored=True, steps=0)[0])


def test_weights_and_gradients_are_page_locked_for_the_device(monkeypatch) -> None:
    asked = []

    def host_bytes(size: int, device: torch.device, report: Quiet) -> torch.Tensor:
        asked.append((size, device.type))
        return torch.zeros(size, dtype=torch.uint8)

    monkeypatch.setattr(offload, "host_bytes", host_bytes)
    Mirror([nn.Parameter(torch.empty(3, device="meta"))])
    assert asked == [(12, "meta"), (12, "meta")]


@pytest.mark.parametrize("bad", [{"mixed_precision": "fp16"}])
def test_the_scaler_of_float16_is_refused(bad: dict) -> None:
    from musubi.config.train import TrainConfig
    from musubi.errors import ConfigError

    with pytest.raises(ConfigError, match="--optimizer_offload cannot go with"):
        TrainConfig(optimizer_offload=True, **bad)
