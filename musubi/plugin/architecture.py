"""What an architecture says about itself: one frozen value that imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from musubi.plugin.keys import KeyMap
from musubi.plugin.option import Option
from musubi.plugin.record import Schema
from musubi.plugin.traits import Preset, Traits

Shapes = Mapping[str, tuple[int, ...]]
Numbers = Mapping[str, Any]
Role = Literal["dit", "vae", "text", "image"]


@dataclass(frozen=True)
class Lazy:
    """The address of something to import on first use: `package.module:name`."""

    address: str

    def load(self) -> Any:
        """Import and return it."""
        module, _, name = self.address.partition(":")
        return getattr(importlib.import_module(module), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import it and call it."""
        return self.load()(*args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A file that people download.

    Args:
        component: The component it is for.
        file: Its path inside the repository.
        repo: `owner/name` on the Hugging Face hub.
        size: In GB (10^9 bytes).
        licence: SPDX name, or the name its publisher uses.
        variants: The variants it belongs to; empty means all.
    """

    component: str
    file: str
    repo: str
    size: float
    licence: str
    variants: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Where a text encoder's tokenizer is published, for when no path is given."""

    repo: str
    subfolder: str = ""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One network that is loaded from its own file.

    Args:
        name: Also its flag: "dit", "vae", "t5", "text_encoder1".
        role: What it is for.
        help: One sentence for `--help`.
        build: `(**numbers) -> nn.Module`. Called under `torch.device("meta")`; its parameter and
            persistent buffer names are *our* names. A module that needs more than its file
            (position tables, say) defines `finish()`, called once its tensors are in place. One
            that needs less (there are layers whose output is not used) defines `trim()`, called
            before anything is read: what it drops is left in the file.
        infer: `(shapes) -> numbers`, from our names to what `build` takes, or a `CheckpointError`
            that says what is amiss; what the file is instead is found out for it.
        dialects: The layouts it is published in, tried in order.
        foreign_keys: A tensor that only files of another kind have, which no installed architecture
            reads → what such a file is. It is refused, and the message says what it looks like.
        traits: What policies may do to it.
        dtype: The name of the dtype it runs in when nobody says otherwise; "file" keeps the file's.
        tokenizer: For text encoders.
        optional: Full-match patterns of our names that a file may lack or have beside what is built.
        fp8: The flag that stores it in 8 bits, for what is not a DiT: "fp8_t5".
        tiny: Numbers for a toy of a few hundred thousand parameters, for tests and the demo.
        full: Numbers of the published file, where there is one size: for plans without files. The
            DiT's are those of the variants.
    """

    name: str
    role: Role
    help: str
    build: Lazy
    infer: Lazy
    dialects: tuple[KeyMap, ...]
    foreign_keys: Mapping[str, str] = field(default_factory=dict[str, str])
    traits: Traits = field(default_factory=Traits)
    dtype: str = "bfloat16"
    tokenizer: Tokenizer | None = None
    optional: tuple[str, ...] = ()
    fp8: str | None = None
    tiny: Numbers = field(default_factory=dict[str, Any])
    full: Numbers = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a task is sampled when nobody says otherwise.

    Args:
        steps: Number of denoising steps.
        flow_shift: The shift k of s' = k s / (1 + (k - 1) s).
        guidance_scale: Classifier-free guidance; 1 means none.
        frames: Video length in frames.
        solver: One of `musubi.flow.solvers`.
        solvers: Those that were tried with this task.
        negative_prompt: Used when the user gives none.
        size: Width and height.
        options: Values of the architecture's own options, where the user gives none.
    """

    steps: int
    flow_shift: float
    guidance_scale: float
    frames: int
    solver: str
    solvers: tuple[str, ...]
    negative_prompt: str = ""
    size: tuple[int, int] = (256, 256)
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing an architecture can be asked to do.

    Args:
        name: "t2v", "i2v", "control".
        title: One line.
        inputs: What a prompt needs beside its text: "image", "end_image", "control".
        optional: What a prompt may have beside its text: "video", to start denoising from.
        components: Names of the components that caching and generation load, the DiT excluded.
        requires: Numbers (of the DiT's `infer`) that a checkpoint for this task must show.
        schema: What its records hold.
        sampling: Its defaults.
        adjust: `(sampling, width, height) -> Sampling`, when defaults depend on the size.
        usable_frames: `(available, options) -> int`: how many of `available` frames a clip uses,
            0 when too few. None: the largest `temporal_multiple * k + 1`.
    """

    name: str
    title: str
    requires: Numbers
    components: tuple[str, ...]
    schema: Schema
    sampling: Sampling
    inputs: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    adjust: Lazy | None = None
    usable_frames: Lazy | None = None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A published size of a task: what `--task t2v-14B` names.

    Args:
        name: "t2v-14B".
        task: The task it performs.
        numbers: What `infer` finds in the published file; also builds the full-size network.
        sampling: Defaults that differ from the task's.
        presets: Measured memory settings.
    """

    name: str
    task: str
    numbers: Numbers
    sampling: Sampling | None = None
    presets: tuple[Preset, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything an architecture says about itself; found through the entry point that names it.

    Args:
        name: The value of `--arch`, and `ss_base_model_version` in LoRA files.
        title: For people.
        components: Its networks. Exactly one has the role "dit".
        tasks: The first is the default.
        variants: Published sizes.
        runtime: `(task, options) -> Runtime`: `Task` and a mapping of this architecture's options.
        suffix: The short name in cache file names; no underscore.
        frame_rate: Frames per second that the model was trained at.
        spatial_multiple: Bucket sides are multiples of this, in pixels.
        temporal_multiple: Clips have `temporal_multiple * k + 1` frames.
        latent_channels: Channels of the latents.
        latent_stride: Pixels per latent cell: time, height, width.
        options: Flags of its own, beside one path flag for each component.
        dataset_options: Keys of its own in the dataset file.
        publications: The files people download.
        modelspec: `modelspec.architecture` without "/lora", and `modelspec.implementation`.
        network_modules: Values of the old `--network_module` that mean this architecture.
    """

    name: str
    title: str
    components: tuple[Component, ...]
    tasks: tuple[Task, ...]
    variants: tuple[Variant, ...]
    runtime: Lazy
    suffix: str
    frame_rate: float
    spatial_multiple: int
    temporal_multiple: int
    latent_channels: int
    latent_stride: tuple[int, int, int]
    options: tuple[Option, ...] = ()
    dataset_options: tuple[Option, ...] = ()
    publications: tuple[Publication, ...] = ()
    modelspec: tuple[str, str] = ("", "")
    network_modules: tuple[str, ...] = ()

    @property
    def dit(self) -> Component:
        """The network that is trained."""
        return next(c for c in self.components if c.role == "dit")

    def component(self, name: str) -> Component:
        """The component of that name; KeyError when there is none."""
        for candidate in self.components:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    def task(self, name: str) -> Task:
        """The task of that name; KeyError when there is none."""
        for candidate in self.tasks:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    def variant(self, name: str) -> Variant:
        """The variant of that name; KeyError when there is none."""
        for candidate in self.variants:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    def of_role(self, role: Role, task: Task) -> tuple[Component, ...]:
        """The task's components of one role, in the order the task names them."""
        return tuple(self.component(n) for n in task.components if self.component(n).role == role)
