"""What an architecture says about itself: one frozen value that imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from musubi.errors import ConfigError
from musubi.plugin.geometry import Geometry
from musubi.plugin.inputs import Input
from musubi.plugin.keys import KeyMap
from musubi.plugin.lazy import Lazy
from musubi.plugin.option import Option
from musubi.plugin.record import Schema
from musubi.plugin.traits import Preset, Traits

Shapes = Mapping[str, tuple[int, ...]]
Numbers = Mapping[str, Any]
Role = Literal["dit", "vae", "text", "image"]


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
        name: Also its flag, where it has none of its own: "dit", "vae", "t5", "text_encoder1".
        flag: Components of which a task uses one at a time may share a flag: two autoencoders that
            are both `--vae`.
        role: What it is for.
        help: One sentence for `--help`.
        build: `(**numbers) -> nn.Module`. Called under `torch.device("meta")`; its parameter and
            persistent buffer names are *our* names. A module that needs more than its file
            (position tables, say) defines `finish()`, called once its tensors are in place. One
            that needs less (there are layers whose output is not used) defines `trim()`, called
            before anything is read: what it drops is left in the file.
        infer: `(shapes) -> numbers`, from our names to what `build` takes, or a `CheckpointError`
            that says what is amiss; what the file is instead is found out for it.
        reads_config: `infer` is also given what the `config.json` beside the weights says, or None:
            `(shapes, config) -> numbers`.
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
    reads_config: bool = False
    fp8: str | None = None
    flag: str = ""
    tiny: Numbers = field(default_factory=dict[str, Any])
    full: Numbers = field(default_factory=dict[str, Any])

    @property
    def option(self) -> str:
        """The name of the option that gives its file."""
        return self.flag or self.name


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a task is sampled when nobody says otherwise.

    Args:
        steps: Number of denoising steps.
        flow_shift: The shift k of s' = k s / (1 + (k - 1) s); None: `Task.sigmas` finds it.
        guidance_scale: Classifier-free guidance; 1 means none.
        frames: Video length in frames.
        solver: The name of a solver, as a person writes it.
        solvers: Those that were tried with this task.
        solver_names: What a person writes → its name in `musubi.flow.solvers`, where the two differ.
        negative_prompt: Used when the user gives none.
        size: Width and height.
        mag_ratios: For MagCache: the norm of what the blocks add, at each of some steps over the one
            before; empty: not measured.
        options: Values of the architecture's own options, where the user gives none.
    """

    steps: int
    flow_shift: float | None
    guidance_scale: float
    frames: int
    solver: str
    solvers: tuple[str, ...]
    solver_names: Mapping[str, str] = field(default_factory=dict[str, str])
    negative_prompt: str = ""
    size: tuple[int, int] = (256, 256)
    mag_ratios: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A shift of noise levels that depends on the number of tokens: its logarithm is linear in it.

    Args:
        low: A number of tokens, and the logarithm of the shift there.
        high: Another one.
    """

    low: tuple[float, float]
    high: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing an architecture can be asked to do.

    The hooks at the end have defaults; each is called with what stands in brackets.

    Args:
        name: "t2v", "i2v", "control".
        title: One line.
        inputs: What a prompt or a dataset item brings beside its text.
        components: Names of the components that caching and generation load, denoisers excluded.
        denoisers: Names of the components of role "dit". Several are experts, each for a part of
            the noise levels.
        requires: Numbers (of a denoiser's `infer`) that a checkpoint for this task must show.
        schema: What its records hold.
        sampling: Its defaults.
        geometry: Of its latents; the architecture's when None. A task that an architecture hands
            out always has it.
        tiny: Numbers of its denoisers' toy, laid over `Component.tiny` and `requires`.
        example: Options of the architecture with which this task is tried by the conformance suite,
            where the defaults do not do.
        adjust: `(sampling, width, height) -> Sampling`, when defaults depend on the size.
        usable_frames: `(available, options) -> int`: how many of `available` frames a clip uses,
            0 when too few. None: the largest `period * k + 1`.
        frames: `(options) -> int`: how many frames a recipe makes, where options other than the
            length decide it; the length that was asked for, or None, is among them as "frames".
        always_encodes: Generation makes a media record also where no input was given.
        check: `(recipe) -> None`: raises a `MusubiError` for what cannot be made, before anything
            is loaded.
        check_network: `(recipe, numbers) -> None`: the same with the numbers of the denoiser's file at
            hand; called for each denoiser when generating.
        texts: `(recipe) -> {name: text}`: what is encoded, where that is more than "prompt" and,
            under guidance, "negative". A section names the text that guides it.
        guidance: `(call, positive, negative, recipe, moment) -> velocity`; None: classifier-free.
            `call` takes a conditioning, `moment` is the `Moment` of the step.
        sigmas: `(recipe, tokens) -> noise levels`, one more than the steps, falling to 0; None:
            those of the solver, shifted.
        intervals: `(options) -> ((low, high), ...)`: for each denoiser, the noise levels that are
            its own; one at `low` is, one at `high` is not, unless `high` is 1. None: all levels.
    """

    name: str
    title: str
    requires: Numbers
    components: tuple[str, ...]
    schema: Schema
    sampling: Sampling
    inputs: tuple[Input, ...] = ()
    denoisers: tuple[str, ...] = ("dit",)
    geometry: Geometry | None = None
    tiny: Numbers = field(default_factory=dict[str, Any])
    example: Mapping[str, Any] = field(default_factory=dict[str, Any])
    adjust: Lazy | None = None
    usable_frames: Lazy | None = None
    frames: Lazy | None = None
    always_encodes: bool = False
    check: Lazy | None = None
    check_network: Lazy | None = None
    texts: Lazy | None = None
    guidance: Lazy | None = None
    sigmas: Lazy | None = None
    intervals: Lazy | None = None

    @property
    def shape(self) -> Geometry:
        """Its geometry, which a task that an architecture hands out always has."""
        if self.geometry is None:
            raise TypeError(
                f"the task {self.name!r} belongs to no architecture, and has no geometry"
            )
        return self.geometry

    def input(self, name: str) -> Input | None:
        """The input of that name."""
        return next((one for one in self.inputs if one.name == name), None)

    def denoiser_intervals(self, options: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
        """For each of `denoisers`, the lowest and the highest noise level that is its own."""
        if self.intervals is None:
            return ((0.0, 1.0),) * len(self.denoisers)
        return tuple(self.intervals(options))


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
        components: Its networks. At least one has the role "dit".
        tasks: The first is the default.
        variants: Published sizes.
        runtime: `(task, options) -> Runtime`: `Task` and a mapping of this architecture's options.
        suffix: The short name in cache file names; no underscore.
        geometry: Of the latents, for the tasks that do not say otherwise.
        options: Flags of its own, beside one path flag for each component.
        dataset_options: Keys of its own in the dataset file.
        shifts: Names of `--timestep_sampling` of its own → the shift that each means.
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
    geometry: Geometry
    options: tuple[Option, ...] = ()
    dataset_options: tuple[Option, ...] = ()
    shifts: Mapping[str, Shift] = field(default_factory=dict[str, Shift])
    publications: tuple[Publication, ...] = ()
    modelspec: tuple[str, str] = ("", "")
    network_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        placed = tuple(replace(t, geometry=t.geometry or self.geometry) for t in self.tasks)
        object.__setattr__(self, "tasks", placed)

    @property
    def dit(self) -> Component:
        """The first denoiser: the layout that LoRA files and merged checkpoints of all have."""
        return next(c for c in self.components if c.role == "dit")

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs of all tasks, each flag once."""
        found = {(i.flag or i.name): i for task in reversed(self.tasks) for i in task.inputs}
        return tuple(reversed(found.values()))

    def component(self, name: str) -> Component:
        """The component of that name; KeyError when there is none."""
        for candidate in self.components:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    def path_of(self, name: str, given: Mapping[str, Path]) -> Path:
        """The file that was given for a component.

        Args:
            name: The component's name.
            given: Component name → its file.

        Raises:
            ConfigError: None was given.
        """
        if name not in given:
            component = self.component(name)
            raise ConfigError(
                f"The {name} of {self.title} is needed, and no file was given.",
                fix=f"Give --{component.option} PATH. {component.help}",
            )
        return given[name]

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
        names = task.denoisers if role == "dit" else task.components
        return tuple(self.component(n) for n in names if self.component(n).role == role)
