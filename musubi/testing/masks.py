"""The check that masks reach the loss of a task; part of `musubi.testing.conformance`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from musubi.cache.loss_weight import weighted
from musubi.config.optimization import TimestepOptions
from musubi.flow.experts import Experts
from musubi.plugin import Conditioning, Record, Runtime, Task
from musubi.testing.subject import Subject
from musubi.train.step import FlowMatchingLoss


class _KeptPrediction:
    """A runtime whose predictions are kept, cut off from the network."""

    def __init__(self, runtime: Runtime) -> None:
        self.condition = runtime.condition
        self.runtime = runtime
        self.found = torch.zeros(0)

    def predict(
        self, dit: nn.Module, x: torch.Tensor, t: torch.Tensor, given: Conditioning
    ) -> torch.Tensor:
        self.found = self.runtime.predict(dit, x, t, given).detach().requires_grad_()
        return self.found


def masks_reach_the_loss(subject: Subject, task: Task) -> None:
    """Where a clip's mask is black, the loss does not see the prediction; where it is white, it does."""
    clip = subject.clip(task)
    frames, height, width = clip.frames.shape[:3]
    mask = np.zeros((frames, height, width, 1), np.uint8)
    mask[:, :, : width // 2] = 255
    runtime: Any = _KeptPrediction(subject.runtime(task))
    with torch.no_grad():
        (parts,) = subject.runtime(task).encode_media(subject.nets, [clip])
    text = {k: v for k, v in subject.records(task, 1)[0].items() if k not in parts[0]}
    dit, name = subject.dit(task), task.denoisers[0]
    for record in weighted(replace(clip, mask=mask), parts, task):
        objective = FlowMatchingLoss(
            runtime=runtime,
            task=task,
            denoisers={name: dit},
            experts=Experts(task, subject.options(task), [name]),
            options=TimestepOptions(),
            device=subject.device,
            autocast=nullcontext,
            seed=0,
        )
        batch = subject.batch(task, [Record({**record, **text})])
        objective.training_loss(batch, 1, 0).backward()
        # Behind what reference images add.
        gradient = runtime.found.grad[:, :, -((frames - 1) // task.shape.period + 1) :]
        middle = gradient.shape[-1] // 2
        assert gradient[..., :middle].any(), "nothing is learned where the mask is white"
        assert not gradient[..., -middle:].any(), "the loss sees what the mask hides"
