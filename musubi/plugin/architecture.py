"""The description of an architecture: one frozen value that imports no torch."""

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
        component: Name of the component that the file is for.
        file: Path of the file inside the repository.
        repo: `owner/name` on the Hugging Face hub.
        size: In GB (10^9 bytes).
        licence: SPDX name, or the name that the publisher uses.
        variants: The variants that use the file; empty means all.
    """

    component: str
    file: str
    repo: str
    size: float
    licence: str
    variants: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Where a text encoder's tokenizer is published; used when the user gives no path."""

    repo: str
    subfolder: str = ""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One network that is loaded from its own file.

    Args:
        name: "dit", "vae", "t5", "text_encoder1". Also the name of the flag, unless `flag` is set.
        flag: The flag that gives the file. Components may share a flag if no task uses more than
            one of them: two autoencoders that are both `--vae`.
        role: What the network is for.
        help: One sentence for `--help`.
        build: `(**numbers) -> nn.Module`. Called under `torch.device("meta")`; its parameter and
            persistent buffer names are *our* names. A module that needs more than its file holds
            (position tables, say) defines `finish()`, which is called once the tensors are in
            place. A module that needs less (some layers' output is not used) defines `trim()`,
            which is called before anything is read; the tensors of layers that `trim()` removes are
            not read.
        infer: `(shapes) -> numbers`: from the shapes of the tensors, by our names, to the arguments
            of `build`. It raises a `CheckpointError` that says what is wrong; the engine adds what
            the file looks like instead.
        reads_config: `infer` also gets the content of the `config.json` beside the weights, or None
            if there is no such file: `(shapes, config) -> numbers`.
        dialects: The name layouts that the file is published in, tried in order.
        foreign_keys: Name of a tensor → what a file with that tensor is. For kinds of files that no
            installed architecture reads: such a file is refused, and the message says what it is.
        traits: What memory policies may do to the network.
        dtype: Name of the default dtype that the network runs in; "file" keeps the file's dtype.
        tokenizer: The tokenizer of a text encoder.
        optional: Full-match patterns of tensor names (ours) that a file may lack, or may have in
            addition to those of the built network.
        fp8: The flag that stores the network in 8 bits, for networks that are no DiT: "fp8_t5".
        tiny: Arguments of `build` for a toy network of a few hundred thousand parameters, used by
            tests and by the demo.
        full: Arguments of `build` for the published file, if there is one size; used to plan
            without files. A DiT has its sizes in `Variant.numbers` instead.
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
        """The name of the option that gives the component's file."""
        return self.flag or self.name


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A task's default settings for generation.

    Args:
        steps: Number of denoising steps.
        flow_shift: The shift k of s' = k s / (1 + (k - 1) s); None: `Task.sigmas` computes it.
        guidance_scale: Classifier-free guidance; 1 means none.
        frames: Video length in frames.
        solver: The name of a solver, as users write it.
        solvers: The solvers that were tested with this task.
        solver_names: What users write → the name in `musubi.flow.solvers`, for names that differ.
        negative_prompt: The negative prompt that is used when the user gives none.
        size: Width and height.
        mag_ratios: For MagCache: at each measured step, the norm of the blocks' residual divided by
            that of the step before. Empty: not measured.
        options: Defaults of the architecture's own options for this task.
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
    """A shift of noise levels whose logarithm is linear in the number of tokens.

    Args:
        low: One point of the line: a number of tokens, and the logarithm of the shift there.
        high: Another point of the line.
    """

    low: tuple[float, float]
    high: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of generation that an architecture can do.

    The last fields are optional functions (hooks); each description shows the arguments in
    brackets.

    Args:
        name: "t2v", "i2v", "control".
        title: A description of one line.
        inputs: Pictures and videos that a prompt or a dataset item gives in addition to its text.
        components: Names of the components that caching and generation load, denoisers excluded.
        denoisers: Names of the components of role "dit". If there are several, each is an expert
            for a part of the noise levels.
        requires: Values that a denoiser's `infer` must return for a checkpoint of this task.
        schema: What the task's cache records hold.
        sampling: Default settings for generation.
        geometry: The shape of the task's latents; None takes the architecture's.
            `Architecture.task` and `Architecture.tasks` fill it in, so it is never None there.
        tiny: Arguments of `build` for toy denoisers of this task; they override `Component.tiny`
            and `requires`.
        example: Values of the architecture's options that the conformance suite uses for this task,
            if the defaults do not work there.
        adjust: `(sampling, width, height) -> Sampling`, when defaults depend on the size.
        usable_frames: `(available, options) -> int`: how many of `available` frames a clip uses,
            0 when too few. None: the largest `period * k + 1`.
        frames: `(options) -> int`: how many frames a recipe makes, if other options than the length
            decide that. `options["frames"]` is the requested length, or None.
        always_encodes: Generation makes a media record even if no input was given.
        check: `(recipe) -> None`: raises a `MusubiError` for a recipe that cannot be generated. It
            is called before anything is loaded.
        check_network: `(recipe, numbers) -> None`: like `check`, but also gets what `infer` found
            in the denoiser's file. Called once for each denoiser when generating.
        texts: `(recipe) -> {name: text}`: the texts to encode, if there are more than "prompt" and
            (with guidance) "negative". A `Section` says by name which text it uses.
        guidance: `(call, positive, negative, recipe, moment) -> velocity`; None: classifier-free
            guidance. `call` runs the denoiser with a conditioning; `moment` is the `Moment` of the
            step.
        sigmas: `(recipe, tokens) -> noise levels`: one more than the number of steps, falling to 0.
            None: the solver's noise levels, shifted by `flow_shift`.
        intervals: `(options) -> ((low, high), ...)`: for each denoiser, the noise levels that it
            handles: from `low`, to below `high` (or to 1 if `high` is 1). None: all levels.
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
        """The task's geometry."""
        if self.geometry is None:
            raise TypeError(
                f"the task {self.name!r} belongs to no architecture, and has no geometry"
            )
        return self.geometry

    def input(self, name: str) -> Input | None:
        """The input with this name, or None."""
        return next((one for one in self.inputs if one.name == name), None)

    def denoiser_intervals(self, options: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
        """For each of `denoisers`, the lowest and the highest noise level that it handles."""
        if self.intervals is None:
            return ((0.0, 1.0),) * len(self.denoisers)
        return tuple(self.intervals(options))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A published size of a task: what `--task t2v-14B` names.

    Args:
        name: "t2v-14B".
        task: Name of the task.
        numbers: What `infer` finds in the published file: the arguments of `build` for the full
            size.
        sampling: Default settings for generation, if they differ from the task's.
        presets: Measured memory settings.
    """

    name: str
    task: str
    numbers: Numbers
    sampling: Sampling | None = None
    presets: tuple[Preset, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The whole description of an architecture. It is found through an entry point of its name.

    Args:
        name: The value of `--arch`, and `ss_base_model_version` in LoRA files.
        title: The name that users see.
        components: The architecture's networks. At least one has the role "dit".
        tasks: The first is the default.
        variants: Published sizes.
        runtime: `(task, options) -> Runtime`, given a `Task` and a mapping of this architecture's
            options.
        suffix: The short name in cache file names; no underscore.
        geometry: The shape of the latents, for tasks without a geometry of their own.
        options: The architecture's own flags, in addition to one path flag for each component.
        dataset_options: The architecture's own keys in the dataset file.
        shifts: The architecture's own values of `--timestep_sampling` → the shift that each means.
        publications: The files that people download.
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
        """The first denoiser. LoRA files and merged checkpoints of all denoisers have its layout."""
        return next(c for c in self.components if c.role == "dit")

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs of all tasks; an input that several tasks share appears once."""
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
