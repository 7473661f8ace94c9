"""One architecture with its twins: what the conformance suite and other tests look at."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from musubi import registry
from musubi.cache.batch import batch_of
from musubi.memory.apply import PolicyPlacement
from musubi.memory.compiled import Compiler
from musubi.plugin import (
    Clip,
    Component,
    Conditioning,
    Input,
    Policy,
    Prompt,
    Record,
    Runtime,
    Task,
)
from musubi.testing import media, twins
from musubi.train.step import move
from musubi.weights.load import load
from musubi.weights.nets import Nets

CAPTIONS = ("a red ball moves right", "a blue square")


class Subject:
    """One architecture with its twins on disk and its networks loaded.

    Args:
        name: As registered.
        folder: Where twins are written; one that has them already is used as it is.
        device: Where its networks run.
    """

    def __init__(self, name: str, folder: Path, device: str | torch.device = "cpu") -> None:
        self.architecture = registry.find(name)
        self.folder = folder
        self.device = torch.device(device)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Everything that it can be asked to do."""
        return self.architecture.tasks

    def path(self, component: Component, task: Task | None = None) -> Path:
        """The file of a twin; written when first asked for."""
        numbers = {}
        if task is not None and component.role == "dit":
            numbers = twins.numbers_for(task)
        label = "_".join([component.name, *(f"{k}-{v}" for k, v in sorted(numbers.items()))])
        folder = self.folder / "twins" / label
        file = folder / f"{component.name}.safetensors"
        if not file.exists():
            seed = self.architecture.components.index(component)
            twins.write_twin(component, folder, numbers=numbers, seed=seed)
        return file

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Component name → file."""
        return {c.name: self.path(c) for c in self.architecture.components}

    @cached_property
    def nets(self) -> Nets:
        """The networks beside the denoisers, in float32."""
        names = [c.name for c in self.architecture.components]
        return Nets(
            self.architecture,
            self.paths,
            device=self.device,
            dtypes=dict.fromkeys(names, torch.float32),
        )

    def options(self, task: Task) -> dict[str, Any]:
        """The architecture's options at their defaults, and what the task's example says."""
        given = {o.name: o.default for o in self.architecture.options}
        return {**given, **task.example}

    def runtime(self, task: Task) -> Runtime:
        """The architecture's runtime for a task."""
        return self.architecture.runtime(self.architecture, task, self.options(task))

    def dit(
        self,
        task: Task | None = None,
        policy: Policy | None = None,
        compiler: Compiler | None = None,
    ) -> nn.Module:
        """A fresh copy of a task's first denoiser, with a memory policy when one is given."""
        task = task or self.tasks[0]
        device, component = self.device, self.architecture.component(task.denoisers[0])
        place = None
        if policy is not None:
            place = PolicyPlacement(component.traits, policy, device, compiler=compiler, smallest=1)
        path = self.path(component, task)
        module = load(component, path, device=device, dtype=torch.float32, placement=place)
        return module if place is None else place.finish(module)

    # what goes in

    def frames(self, task: Task, index: int = 0) -> np.ndarray:
        """A clip of the smallest useful size: two latent frames, 4 by 6 latent cells or more."""
        shape = task.shape
        available = 40 * shape.period + 1
        frames = self._usable(task, available)
        height, width = 2 * shape.side, 3 * shape.side
        return media.clip(width, height, frames, colour=list(media.COLOURS)[index])

    def _usable(self, task: Task, available: int) -> int:
        """The fewest frames above one latent frame that the task makes a clip of."""
        if task.usable_frames is None:
            return task.shape.period + 1
        options = self.options(task)
        options |= {o.name: o.default for o in self.architecture.dataset_options}
        counts = (int(task.usable_frames(n, options)) for n in range(1, available + 1))
        found = sorted({n for n in counts if n > 0})
        return next((n for n in found if n > 1), found[0])

    def given(self, task: Task, index: int = 0, *, generating: bool = False) -> dict[str, Any]:
        """Something for each input: name → frames. Those that a dataset cannot name belong to
        generating alone.
        """
        frames = self.frames(task, 1 - index)
        return {
            one.name: tuple(_picture(one, frames, number) for number in range(2 if one.many else 1))
            for one in task.inputs
            if generating or one.in_datasets
        }

    def clip(self, task: Task, index: int = 0) -> Clip:
        """A clip as a dataset gives it."""
        frames = self.frames(task, index)
        options = {o.name: o.default for o in self.architecture.dataset_options}
        return Clip(
            name=f"clip {index}",
            frames=frames,
            length=len(frames),
            inputs=self.given(task, index),
            options={**options, **task.example},
        )

    def prompt(self, task: Task, index: int = 0) -> Prompt:
        """A caption, with the pictures that text encoders see."""
        given = self.given(task, index)
        seen = {one.name for one in task.inputs if one.seen_by_text}
        return Prompt(text=CAPTIONS[index], pictures={n: p for n, p in given.items() if n in seen})

    # what comes out

    def records(self, task: Task, count: int = 2) -> list[Record]:
        """Joined media and text records of `count` clips (their first sections)."""
        runtime = self.runtime(task)
        with torch.no_grad():
            clips = [self.clip(task, i) for i in range(count)]
            out = [Record(parts[0]) for parts in runtime.encode_media(self.nets, clips)]
            prompts = [self.prompt(task, i) for i in range(count)]
            for component in self.architecture.of_role("text", task):
                texts = runtime.encode_text(self.nets, component.name, prompts)
                for record, text in zip(out, texts, strict=True):
                    record.update(text)
        return out

    def batch(self, task: Task, records: list[Record]) -> dict[str, Any]:
        """Records joined as the training set joins them."""
        return batch_of(records, task.schema)

    def conditioned(self, task: Task, records: list[Record]) -> Conditioning:
        """What these records say, on the device, in the denoiser's terms."""
        return self.runtime(task).condition(move(self.batch(task, records), self.device))

    def prediction(self, task: Task, dit: nn.Module, records: list[Record]) -> torch.Tensor:
        """The velocity for these records at fixed times and noise."""
        given = self.conditioned(task, records)
        return self.runtime(task).predict(dit, *noisy(given), given)

    def generating(
        self, task: Task, inputs: Mapping[str, Any] | None = None, text: str = CAPTIONS[0]
    ) -> Record:
        """The record of a prompt, with everything the task needs, or with these inputs."""
        frames = self.frames(task)
        if inputs is None:
            needed = {one.name for one in task.inputs if one.required}
            given = self.given(task, generating=True)
            inputs = {name: given[name] for name in needed}
        clip = Clip(
            name=text,
            frames=frames[:0],
            length=len(frames),
            inputs=inputs,
            target=False,
            options=self.options(task),
        )
        record = Record()
        runtime = self.runtime(task)
        seen = {n: p for n, p in inputs.items() if (one := task.input(n)) and one.seen_by_text}
        with torch.no_grad():
            if inputs or task.always_encodes:
                record.update(runtime.encode_media(self.nets, [clip])[0][0])
            for component in self.architecture.of_role("text", task):
                prompt = Prompt(text=text, pictures=seen)
                record.update(runtime.encode_text(self.nets, component.name, [prompt])[0])
        return record


def _picture(wanted: Input, frames: np.ndarray, number: int) -> np.ndarray:
    """Frames for an input: F H W 3, or one channel for a mask."""
    moved = np.roll(frames, 3 + number, axis=2)
    if wanted.kind == "mask":
        return moved[:1, ..., :1]
    return moved if wanted.kind == "video" else moved[:1]


def noisy(given: Conditioning) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents and their times for a conditioned batch, the same each time."""
    assert given.latents is not None, "condition() gave no latents for a training batch"
    device = given.latents.device
    noise = torch.randn(given.latents.shape, generator=torch.Generator().manual_seed(1)).to(device)
    t = torch.linspace(0.3, 0.8, len(noise), device=device)
    mix = t.view(-1, 1, 1, 1, 1)
    return (1 - mix) * given.latents + mix * noise, t
