"""One architecture with its twins: what the conformance suite and other tests look at."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musubi import registry
from musubi.memory.apply import PolicyPlacement
from musubi.memory.compiled import Compiler
from musubi.plugin import Clip, Conditioning, Policy, Record, Runtime, Task
from musubi.testing import media, twins
from musubi.train.step import move
from musubi.weights.load import load
from musubi.weights.nets import Nets

CAPTIONS = ("a red ball moves right", "a blue square")


class Subject:
    """One architecture with its twins on disk and its networks loaded.

    Args:
        name: As registered.
        folder: An empty folder to write in.
        device: Where its networks run.
    """

    def __init__(self, name: str, folder: Path, device: str | torch.device = "cpu") -> None:
        self.architecture = registry.find(name)
        self.folder = folder
        self.device = torch.device(device)

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Component name → file."""
        return twins.write_twins(self.architecture, self.folder)

    @cached_property
    def nets(self) -> Nets:
        """The networks, in float32."""
        names = [c.name for c in self.architecture.components]
        return Nets(
            self.architecture,
            self.paths,
            device=self.device,
            dtypes=dict.fromkeys(names, torch.float32),
        )

    def runtime(self, task: Task) -> Runtime:
        """The architecture's runtime with its options at their defaults."""
        options = {o.name: o.default for o in self.architecture.options}
        return self.architecture.runtime(self.architecture, task, options)

    def dit(self, policy: Policy | None = None, compiler: Compiler | None = None) -> nn.Module:
        """A fresh copy of the denoiser, with a memory policy when one is given."""
        device, component = self.device, self.architecture.dit
        place = None
        if policy is not None:
            place = PolicyPlacement(component.traits, policy, device, compiler=compiler, smallest=1)
        module = load(
            component, self.paths["dit"], device=device, dtype=torch.float32, placement=place
        )
        return module if place is None else place.finish(module)

    @property
    def tasks(self) -> list[Task]:
        """The tasks that the toy-size denoiser can perform."""
        numbers: Any = self.dit().musubi_numbers
        fitting = [
            task
            for task in self.architecture.tasks
            if all(numbers.get(key) == value for key, value in task.requires.items())
        ]
        assert fitting, f"no task fits the tiny numbers {numbers}"
        return fitting

    def clip(self, index: int = 0) -> Clip:
        """A clip of the smallest useful size: two latent frames, 4 by 6 latent cells or more."""
        arch = self.architecture
        frames = arch.temporal_multiple + 1
        height, width = 2 * arch.spatial_multiple, 3 * arch.spatial_multiple
        pictures = media.clip(width, height, frames, colour=list(media.COLOURS)[index])
        return Clip(name=f"clip {index}", frames=pictures, length=frames, controls=(pictures[:1],))

    def records(self, task: Task, count: int = 2) -> list[Record]:
        """Joined media and text records of `count` clips (their first sections)."""
        runtime = self.runtime(task)
        with torch.no_grad():
            media_records = runtime.encode_media(self.nets, [self.clip(i) for i in range(count)])
            out = [dict(parts[0]) for parts in media_records]
            for component in self.architecture.of_role("text", task):
                texts = runtime.encode_text(self.nets, component.name, CAPTIONS[:count])
                for record, text in zip(out, texts, strict=True):
                    record.update(text)
        return out

    def batch(self, task: Task, records: list[Record]) -> dict[str, Any]:
        """Records joined as the training set joins them."""
        varlen = {f.name for f in (*task.schema.media, *task.schema.text) if f.varlen}
        return {
            name: [r[name] for r in records]
            if name in varlen
            else torch.stack([r[name] for r in records])
            for name in records[0]
        }

    def given(self, task: Task, records: list[Record]) -> Conditioning:
        """What these records say, on the device, in the denoiser's terms."""
        return self.runtime(task).condition(move(self.batch(task, records), self.device))

    def prediction(self, task: Task, dit: nn.Module, records: list[Record]) -> torch.Tensor:
        """The velocity for these records at fixed times and noise."""
        given = self.given(task, records)
        return self.runtime(task).predict(dit, *noisy(given), given)


def noisy(given: Conditioning) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents and their times for a conditioned batch, the same each time."""
    assert given.latents is not None, "condition() gave no latents for a training batch"
    device = given.latents.device
    noise = torch.randn(given.latents.shape, generator=torch.Generator().manual_seed(1)).to(device)
    t = torch.linspace(0.3, 0.8, len(noise), device=device)
    mix = t.view(-1, 1, 1, 1, 1)
    return (1 - mix) * given.latents + mix * noise, t
