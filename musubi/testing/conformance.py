"""What every architecture must pass, built in or from outside: `for check in CHECKS: check(Subject(name, folder))`, and `TASK_CHECKS` for each task.

Everything runs on the architecture's tiny twins, in float32, on the subject's device.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from musubi.config.generate import GenerateConfig
from musubi.config.options import Options, for_architecture
from musubi.config.recipe import NEGATIVE, build_recipe, requested, texts_of
from musubi.config.task import Choice
from musubi.errors import CheckpointError
from musubi.lora.adapter import Adapters
from musubi.memory.blocks import stacks
from musubi.memory.compiled import Compiler
from musubi.plan.requests import requests
from musubi.plugin import (
    Conditioning,
    Policy,
    Quiet,
    Recipe,
    Record,
    Task,
    declared,
    lacking,
)
from musubi.plugin.policy import Recompute, Storage
from musubi.testing import twins
from musubi.testing.masks import masks_reach_the_loss
from musubi.testing.subject import CAPTIONS, Subject, noisy
from musubi.weights.files import open_weights
from musubi.weights.load import load


def says_itself_without_torch(subject: Subject) -> None:
    """The value is data: importing it leaves torch, numpy and transformers alone."""
    code = (
        "import sys; from musubi import registry; registry.find(sys.argv[1]);"
        "print([m for m in ('torch', 'numpy', 'transformers', 'av', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, subject.architecture.name],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]", f"importing the value imports {done.stdout.strip()}"


def names_agree(subject: Subject) -> None:
    """Tasks, variants, components and publications refer to one another by names that exist."""
    arch = subject.architecture
    components = {c.name for c in arch.components}
    assert "dit" in [c.role for c in arch.components]
    assert "_" not in arch.suffix
    for task in arch.tasks:
        assert {*task.components, *task.denoisers} <= components, (
            f"{task.name} names an unknown one"
        )
        assert {arch.component(name).role for name in task.denoisers} == {"dit"}
        assert len(task.denoiser_intervals({o.name: o.default for o in arch.options})) == len(
            task.denoisers
        )
        assert task.sampling.solver in task.sampling.solvers
    variants = {v.name for v in arch.variants}
    for variant in arch.variants:
        assert arch.task(variant.task)
    for publication in arch.publications:
        assert publication.component in components
        assert set(publication.variants) <= variants


def full_sizes_build(subject: Subject) -> None:
    """Each variant builds on the meta device, and its sizes are read back from its own shapes."""
    arch = subject.architecture
    for variant in arch.variants:
        with torch.device("meta"):
            module = arch.dit.build(**variant.numbers)
        shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
        found = arch.dit.infer(shapes)
        wrong = {k: (v, found.get(k)) for k, v in variant.numbers.items() if found.get(k) != v}
        assert not wrong, f"{variant.name}: expected and inferred differ: {wrong}"
        for key, value in arch.task(variant.task).requires.items():
            assert found.get(key) == value


def key_maps_round_trip(subject: Subject) -> None:
    """Writing in a dialect and reading it back gives every name and tensor again."""
    for component in subject.architecture.components:
        module = twins.build_twin(component)
        ours = sorted(module.state_dict())
        for dialect in component.dialects:
            written = dialect.writing(ours)
            assert dialect.recognises(written), (
                f"{component.name}: {dialect.name} does not know itself"
            )
            assert sorted(dialect.reading(written)) == ours, f"{component.name}: {dialect.name}"
            path = twins.write_twin(component, subject.folder / dialect.name, dialect=dialect.name)
            loaded = load(component, path, device=torch.device("cpu"), dtype=torch.float32)
            for name, tensor in loaded.state_dict().items():
                assert torch.equal(tensor, module.state_dict()[name]), f"{dialect.name}: {name}"


def strangers_are_refused(subject: Subject) -> None:
    """No component accepts another component's file; experts are alike."""
    arch = subject.architecture
    for component, other in itertools.permutations(arch.components, 2):
        if component.role == other.role == "dit":
            continue
        try:
            load(component, subject.paths[other.name], device=torch.device("cpu"))
        except CheckpointError:
            continue
        raise AssertionError(f"--{component.name} accepts the file of --{other.name}")


def files_hold_no_more_than_is_read(subject: Subject) -> None:
    """Every tensor of a twin's file is used, or declared not to be: the numbers in it are counted."""
    for component in subject.architecture.components:
        module = load(component, subject.paths[component.name], device=torch.device("cpu"))
        with open_weights(subject.paths[component.name]) as weights:
            stored = sum(int(np.prod(shape)) for shape in weights.shapes.values())
        with torch.device("meta"):
            built = component.build(**component.tiny)
        whole = sum(tensor.numel() for tensor in built.state_dict().values())
        getattr(built, "trim", int)()  # what a network drops on purpose
        dropped = whole - sum(tensor.numel() for tensor in built.state_dict().values())
        used = sum(tensor.numel() for tensor in module.state_dict().values())
        assert stored == used + dropped, component.name


def inputs_say_enough(subject: Subject) -> None:
    """Flags, letters and keys of inputs do not collide, and text encoders see what datasets name."""
    arch = subject.architecture
    taken = {o.name for o in arch.options if "generate" in o.commands}
    for one in arch.inputs:
        assert one.flag not in taken, f"{one.flag} is an option too"
        assert not one.seen_by_text or (one.in_datasets and one.kind == "image"), one.name
    letters = [i.letter for i in arch.inputs if i.letter] + [
        o.letter for o in arch.options if o.letter
    ]
    assert len(letters) == len(set(letters)), f"a letter stands for two things: {letters}"
    for task in arch.tasks:
        names = [one.name for one in task.inputs]
        assert len(names) == len(set(names)), f"{task.name} has two inputs of one name"


# checks of one task


def stacks_run_once_in_order(subject: Subject, task: Task) -> None:
    """Blocks of the declared stacks run once each, in the order they stand in."""
    dit = subject.dit(task)
    seen: list[str] = []
    expected: list[str] = []
    for stack in subject.architecture.dit.traits.stacks:
        for index, block in enumerate(dit.get_submodule(stack).children()):
            expected.append(f"{stack}.{index}")
            block.register_forward_hook(
                lambda *_, to=seen, name=f"{stack}.{index}": to.append(name)
            )
    with torch.no_grad():
        subject.prediction(task, dit, subject.records(task, 1))
    assert expected and seen == expected


def records_fit_the_schema(subject: Subject, task: Task) -> None:
    """Records hold the declared fields, with the declared axes and finite values."""
    fields = task.schema.fields
    for record in subject.records(task):
        absent = lacking(fields, record)
        assert not absent, f"missing: {absent}"
        for name, tensor in record.items():
            field = declared(fields, name)
            assert field is not None, f"undeclared: {name}"
            assert tensor.ndim == len(field.dims), f"{name} has {tensor.ndim} axes"
            for axis, size in field.sizes:
                assert tensor.shape[field.dims.index(axis)] == size, f"{name}: axis {axis}"
            assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), name


def neighbours_do_not_matter(subject: Subject, task: Task) -> None:
    """A clip or caption encoded alone equals itself encoded in company."""
    together, alone = subject.records(task, 2)[0], subject.records(task, 1)[0]
    for name, tensor in alone.items():
        _close(together[name], tensor, 1e-5, name)


def two_equal_two_singles(subject: Subject, task: Task) -> None:
    """A batch of two predicts what two batches of one predict."""
    dit, records = subject.dit(task), subject.records(task, 2)
    runtime = subject.runtime(task)
    with torch.no_grad():
        given = subject.conditioned(task, records)
        x, t = noisy(given)
        both = runtime.predict(dit, x, t, given)
        for i, record in enumerate(records):
            single = subject.conditioned(task, [record])
            one = runtime.predict(dit, x[i : i + 1], t[i : i + 1], single)
            _close(both[i : i + 1], one, 1e-5, f"item {i}")


def time_and_text_matter(subject: Subject, task: Task) -> None:
    """The prediction changes with the text and with the time, and has the latents' shape."""
    dit, records = subject.dit(task), subject.records(task, 2)
    runtime = subject.runtime(task)
    with torch.no_grad():
        given = subject.conditioned(task, records[:1])
        x, t = noisy(given)
        here = runtime.predict(dit, x, t, given)
        assert here.shape == x.shape
        assert not torch.allclose(here, runtime.predict(dit, x, t * 0.5, given))
        if task.schema.text:
            texts = {k: v for k, v in records[1].items() if declared(task.schema.text, k)}
            other = subject.conditioned(task, [{**records[0], **texts}])
            assert not torch.allclose(here, runtime.predict(dit, x, t, other))


def each_input_matters(subject: Subject, task: Task) -> None:
    """Each declared input changes what a prompt makes: the prediction, or what it starts from."""
    dit, runtime = subject.dit(task), subject.runtime(task)
    recipe = recipe_of(subject, task)
    first, second = (subject.given(task, i, generating=True) for i in (0, 1))
    needed = {one.name: first[one.name] for one in task.inputs if one.required}

    def made(inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        given = subject.conditioned(task, [subject.generating(task, inputs)])
        section = next(runtime.rollout(recipe, given, subject.device))
        t = torch.full((1,), 0.7, device=subject.device)
        start = section.noise if section.clean is None else section.clean
        return start, runtime.predict(dit, section.noise, t, given.plus(**section.inputs))

    with torch.no_grad(), _repeatable():
        for one in task.inputs:
            also = {one.beside: first[one.beside]} if one.beside else {}
            here = made({**needed, **also, one.name: first[one.name]})
            there = made({**needed, **also, one.name: second[one.name]})
            alike = all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
            assert not alike, f"{one.name} changes nothing"


def adapters_reach_every_target(subject: Subject, task: Task) -> None:
    """A fresh LoRA changes nothing, and every one of its matrices gets a gradient."""
    targets = subject.architecture.dit.traits.lora
    assert targets is not None, "the denoiser declares no LoRA targets"
    dit, records = subject.dit(task), subject.records(task, 1)
    with torch.no_grad():
        before = subject.prediction(task, dit, records)
    adapters = Adapters.create(dit, targets, rank=2, alpha=1.0)
    adapters.attach()
    after = subject.prediction(task, dit, records)
    assert torch.equal(before, after.detach()), "a fresh LoRA changes the prediction"
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            parameter.add_(0.01 * torch.randn_like(parameter) if "up" in name else 0)
    subject.prediction(task, dit, records).square().mean().backward()
    dead = [n for n, p in adapters.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead, f"no gradient reaches {dead[:3]}"


def policies_agree(subject: Subject, task: Task) -> None:
    """Every combination of memory policies gives the same prediction and the same gradients."""
    records = subject.records(task, 2)
    plain = _outcome(subject, task, records, Policy())
    for policy in _combinations(subject):
        for a, b in zip(plain, _outcome(subject, task, records, policy), strict=True):
            if subject.device.type == "cpu":
                assert torch.equal(a, b), f"{policy} changes the answer"
            else:  # where sums are made in any order
                _close(b, a, 1e-5, str(policy))
    for a, b in zip(plain, _outcome(subject, task, records, everything(subject)), strict=True):
        _close(b, a, 1e-5, "a compiled network")


def eight_bits_stay_close(subject: Subject, task: Task) -> None:
    """8-bit weights and products move answers and gradients by a bounded part, wherever they live."""
    records = subject.records(task, 2)
    plain = _outcome(subject, task, records, Policy())
    kinds: tuple[Storage, ...] = ("fp8_scaled", "int8")
    for storage, quantized_matmul in itertools.product(kinds, (False, True)):
        alone = Policy(storage=storage, quantized_matmul=quantized_matmul)
        found = _outcome(subject, task, records, alone)
        for a, b in zip(plain[:2], found[:2], strict=True):
            _close(b, a, 0.3, str(alone))
        here, there = (torch.cat([g.flatten() for g in one[2:-1]]) for one in (found, plain))
        _close(here, there, 0.5, f"the gradients of {alone}")
        away = replace(
            alone, recompute="blocks", streamed=every_block(subject), offload_activations=True
        )
        for a, b in zip(found, _outcome(subject, task, records, away), strict=True):
            if subject.device.type == "cpu":
                assert torch.equal(a, b), f"{away} changes the answer"
            else:  # where a sum in another order rounds to another of 255 steps
                _close(b, a, 0.05, str(away))
    compiled = replace(everything(subject), storage="int8", quantized_matmul=True)
    whole = _outcome(subject, task, records, compiled)
    for a, b in zip(plain[:2], whole[:2], strict=True):
        _close(b, a, 0.3, "a compiled network in int8")


def _outcome(
    subject: Subject, task: Task, records: list[Record], policy: Policy
) -> list[torch.Tensor]:
    """A sample, a prediction, its gradients, and a sample once more."""
    targets = subject.architecture.dit.traits.lora
    assert targets is not None
    # Where that would need a C compiler, not to the end: traced, differentiated and split.
    backend = "aot_eager" if subject.device.type == "cpu" else "inductor"
    dit = subject.dit(task, policy, Compiler(backend=backend, fullgraph=True))
    torch.manual_seed(0)
    adapters = Adapters.create(dit, targets, rank=2, alpha=1.0)
    with warnings.catch_warnings():
        # The compiler looks at the gradient of everything it traces, leaf or not, and makes an
        # instance of a function that is differentiated by hand.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
        warnings.filterwarnings("ignore", message=".*should not be instantiated")
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.copy_(0.05 * torch.randn_like(parameter))
            adapters.attach()
            found = [subject.prediction(task, dit, records)]
        out = subject.prediction(task, dit, records)
        out.square().mean().backward()
    found.append(out.detach())
    for parameter in adapters.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad)
    with torch.no_grad():
        found.append(subject.prediction(task, dit, records))
    return found


def a_rollout_has_the_size_asked_for(subject: Subject, task: Task) -> None:
    """Latents of a rollout decode to the frames, height and width of the recipe, the same each time."""
    runtime, dit = subject.runtime(task), subject.dit(task)
    given = subject.conditioned(task, [subject.generating(task)])
    recipe = recipe_of(subject, task)
    with torch.no_grad(), _repeatable():
        first, second = (_roll(subject, task, dit, given) for _ in range(2))
        assert torch.equal(first, second), "one seed gave two videos"
        frames = torch.cat(list(runtime.decode(subject.nets, first, recipe)), dim=2)
    assert frames.shape == (1, 3, recipe.frames, recipe.height, recipe.width)
    assert frames.dtype == torch.float32
    assert frames.min() >= 0 and frames.max() <= 1


def plan_and_generate_agree(subject: Subject, task: Task) -> None:
    """What the planner expects of a prompt is what is made."""
    arch = subject.architecture
    variant = next((v for v in arch.variants if v.task == task.name), None)
    choice = Choice(task, variant)
    model = for_architecture(GenerateConfig, arch, "generate")
    words: dict[str, Any] = {"prompt": "a cat", "save_path": "out", **_typed(model, task)}
    config = cast(GenerateConfig, model(**words))
    given, own = requested(config, arch)
    recipe = build_recipe(arch, choice, given, own, Quiet(), complete=False)
    (planned,) = requests(config, arch, choice)
    made = (recipe.width, recipe.height, recipe.frames, recipe.steps)
    assert made == (planned.width, planned.height, planned.frames, planned.steps)
    assert planned.calls == (2 if NEGATIVE in texts_of(recipe, task) else 1)


CHECKS: tuple[Callable[[Subject], None], ...] = (
    says_itself_without_torch,
    names_agree,
    inputs_say_enough,
    full_sizes_build,
    key_maps_round_trip,
    strangers_are_refused,
    files_hold_no_more_than_is_read,
)
"""Of an architecture."""

TASK_CHECKS: tuple[Callable[[Subject, Task], None], ...] = (
    stacks_run_once_in_order,
    records_fit_the_schema,
    neighbours_do_not_matter,
    two_equal_two_singles,
    time_and_text_matter,
    each_input_matters,
    adapters_reach_every_target,
    masks_reach_the_loss,
    policies_agree,
    eight_bits_stay_close,
    a_rollout_has_the_size_asked_for,
    plan_and_generate_agree,
)
"""Of each of its tasks."""


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    difference = (found.float() - expected.float()).norm() / expected.float().norm().clamp(
        min=1e-12
    )
    assert difference < tolerance, f"{what} differs by {difference:.1e}"


def _combinations(subject: Subject) -> Iterator[Policy]:
    """Every policy that changes where numbers are, and not the numbers."""
    modes: tuple[Recompute, ...] = ("none", "attention", "blocks")
    for recompute, streamed, offload in itertools.product(
        modes, ((), every_block(subject)), (False, True)
    ):
        yield Policy(recompute=recompute, streamed=streamed, offload_activations=offload)


def everything(subject: Subject) -> Policy:
    """Everything at once."""
    return Policy(
        recompute="attention",
        streamed=every_block(subject),
        offload_activations=True,
        ffn_chunks=2,
        attention_chunks=2,
        compile=True,
    )


def every_block(subject: Subject) -> tuple[int, ...]:
    """How many blocks each stack has."""
    dit = subject.dit()
    return tuple(len(stack) for stack in stacks(dit, subject.architecture.dit.traits))


def recipe_of(subject: Subject, task: Task) -> Recipe:
    """A recipe of the size of the subject's clips."""
    frames = subject.frames(task)
    return Recipe(
        prompt=CAPTIONS[0],
        negative_prompt="",
        width=frames.shape[2],
        height=frames.shape[1],
        frames=len(frames) if task.frames is None else int(task.frames(subject.options(task))),
        fps=task.shape.frame_rate,
        seed=7,
        steps=2,
        solver=task.sampling.solver,
        flow_shift=1.0,
        guidance_scale=1.0,
        cpu_noise=True,
        options={**task.sampling.options, **subject.options(task), **task.example},
    )


def _typed(model: type[Options], task: Task) -> dict[str, Any]:
    """The options of the task's example that `generate` has."""
    return {name: value for name, value in task.example.items() if name in model.model_fields}


def _roll(subject: Subject, task: Task, dit: nn.Module, given: Conditioning) -> torch.Tensor:
    runtime, recipe = subject.runtime(task), recipe_of(subject, task)
    sections = runtime.rollout(recipe, given, subject.device)
    section = next(sections)
    while True:
        t = torch.ones(len(section.noise), device=section.noise.device)
        velocity = runtime.predict(dit, section.noise, t, given.plus(**section.inputs))
        try:
            section = sections.send(section.noise - velocity)
        except StopIteration as end:
            return end.value


@contextmanager
def _repeatable() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
