"""What every architecture must pass, built in or from outside: `for check in CHECKS: check(Subject(name, folder))`.

Everything runs on the architecture's tiny twins, in float32, on the subject's device.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from musubi.errors import CheckpointError
from musubi.lora.adapter import Adapters
from musubi.memory.blocks import stacks
from musubi.memory.compiled import Compiler
from musubi.plugin import Architecture, Clip, Conditioning, Policy, Recipe, Record, Task
from musubi.plugin.policy import Recompute, Storage
from musubi.testing import twins
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
    assert [c.role for c in arch.components].count("dit") == 1
    assert "_" not in arch.suffix
    for task in arch.tasks:
        assert set(task.components) <= components, f"{task.name} names an unknown component"
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
    """No component accepts another component's file."""
    arch = subject.architecture
    for component, other in itertools.permutations(arch.components, 2):
        try:
            load(component, subject.paths[other.name], device=torch.device("cpu"))
        except CheckpointError:
            continue
        raise AssertionError(f"--{component.name} accepts the file of --{other.name}")


def stacks_run_once_in_order(subject: Subject) -> None:
    """Blocks of the declared stacks run once each, in the order they stand in."""
    for task in subject.tasks:
        dit = subject.dit()
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


def records_fit_the_schema(subject: Subject) -> None:
    """Records hold the declared fields, with the declared axes and finite values."""
    for task in subject.tasks:
        fields = {f.name: f for f in (*task.schema.media, *task.schema.text)}
        for record in subject.records(task):
            assert set(record) <= set(fields), f"undeclared: {set(record) - set(fields)}"
            absent = {n for n, f in fields.items() if not f.optional} - set(record)
            assert not absent, f"missing: {absent}"
            for name, tensor in record.items():
                field = fields[name]
                assert tensor.ndim == len(field.dims), f"{name} has {tensor.ndim} axes"
                for axis, size in field.sizes:
                    assert tensor.shape[field.dims.index(axis)] == size, f"{name}: axis {axis}"
                assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), name


def neighbours_do_not_matter(subject: Subject) -> None:
    """A clip or caption encoded alone equals itself encoded in company."""
    for task in subject.tasks:
        together, alone = subject.records(task, 2)[0], subject.records(task, 1)[0]
        for name, tensor in alone.items():
            _close(together[name], tensor, 1e-5, name)


def two_equal_two_singles(subject: Subject) -> None:
    """A batch of two predicts what two batches of one predict."""
    for task in subject.tasks:
        dit, records = subject.dit(), subject.records(task, 2)
        runtime = subject.runtime(task)
        with torch.no_grad():
            given = subject.given(task, records)
            x, t = noisy(given)
            both = runtime.predict(dit, x, t, given)
            for i, record in enumerate(records):
                single = subject.given(task, [record])
                one = runtime.predict(dit, x[i : i + 1], t[i : i + 1], single)
                _close(both[i : i + 1], one, 1e-5, f"item {i}")


def inputs_matter(subject: Subject) -> None:
    """The prediction changes with the text and with the time, and has the latents' shape."""
    for task in subject.tasks:
        dit, records = subject.dit(), subject.records(task, 2)
        runtime = subject.runtime(task)
        with torch.no_grad():
            given = subject.given(task, records[:1])
            x, t = noisy(given)
            here = runtime.predict(dit, x, t, given)
            assert here.shape == x.shape
            assert not torch.allclose(here, runtime.predict(dit, x, t * 0.5, given))
            if task.schema.text:
                texts = {f.name: records[1][f.name] for f in task.schema.text}
                other = subject.given(task, [{**records[0], **texts}])
                assert not torch.allclose(here, runtime.predict(dit, x, t, other))


def adapters_reach_every_target(subject: Subject) -> None:
    """A fresh LoRA changes nothing, and every one of its matrices gets a gradient."""
    targets = subject.architecture.dit.traits.lora
    assert targets is not None, "the denoiser declares no LoRA targets"
    for task in subject.tasks:
        dit, records = subject.dit(), subject.records(task, 1)
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


def policies_agree(subject: Subject) -> None:
    """Every combination of memory policies gives the same prediction and the same gradients."""
    targets = subject.architecture.dit.traits.lora
    assert targets is not None
    for task in subject.tasks:
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


def eight_bits_stay_close(subject: Subject) -> None:
    """8-bit weights and products move answers and gradients by a bounded part, wherever they live."""
    task = subject.tasks[0]
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
    dit = subject.dit(policy, Compiler(backend=backend, fullgraph=True))
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


def a_rollout_has_the_size_asked_for(subject: Subject) -> None:
    """Latents of a rollout decode to the frames, height and width of the recipe, the same each time."""
    arch = subject.architecture
    for task in subject.tasks:
        runtime, dit = subject.runtime(task), subject.dit()
        given = _generating(subject, task)
        recipe = _recipe(arch, task)
        with torch.no_grad(), _repeatable():
            first, second = (_roll(subject, task, dit, given) for _ in range(2))
            assert torch.equal(first, second), "one seed gave two videos"
            frames = runtime.decode(subject.nets, first)
        assert frames.shape == (1, 3, recipe.frames, recipe.height, recipe.width)
        assert frames.dtype == torch.float32
        assert frames.min() >= 0 and frames.max() <= 1


def a_video_to_start_from_is_encoded_as_for_training(subject: Subject) -> None:
    """Denoising that starts from a video starts from the latents that training has of it."""
    for task in subject.tasks:
        if "video" not in task.optional:
            continue
        runtime = subject.runtime(task)
        recipe = replace(_recipe(subject.architecture, task), options={"strength": 0.5})
        given = _generating(subject, task, video=True)
        section = next(runtime.rollout(recipe, given, subject.device))
        assert section.clean is not None and section.strength == 0.5
        learned = subject.given(task, subject.records(task, 1)).latents
        assert learned is not None
        _close(section.clean, learned, 1e-3, "the video to start from")


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


CHECKS: tuple[Callable[[Subject], None], ...] = (
    says_itself_without_torch,
    names_agree,
    full_sizes_build,
    key_maps_round_trip,
    strangers_are_refused,
    files_hold_no_more_than_is_read,
    stacks_run_once_in_order,
    records_fit_the_schema,
    neighbours_do_not_matter,
    two_equal_two_singles,
    inputs_matter,
    adapters_reach_every_target,
    policies_agree,
    eight_bits_stay_close,
    a_rollout_has_the_size_asked_for,
    a_video_to_start_from_is_encoded_as_for_training,
)


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    difference = (found - expected).float().norm() / expected.float().norm().clamp(min=1e-12)
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
        compile=True,
    )


def every_block(subject: Subject) -> tuple[int, ...]:
    """How many blocks each stack has."""
    dit = subject.dit()
    return tuple(len(stack) for stack in stacks(dit, subject.architecture.dit.traits))


def _recipe(arch: Architecture, task: Task) -> Recipe:
    return Recipe(
        prompt=CAPTIONS[0],
        negative_prompt="",
        width=3 * arch.spatial_multiple,
        height=2 * arch.spatial_multiple,
        frames=arch.temporal_multiple + 1,
        fps=arch.frame_rate,
        seed=7,
        steps=2,
        solver=task.sampling.solver,
        flow_shift=1.0,
        guidance_scale=1.0,
        cpu_noise=True,
    )


def _generating(subject: Subject, task: Task, *, video: bool = False) -> Conditioning:
    clip = subject.clip()
    asked = Clip(
        name=clip.name,
        frames=clip.frames[:1],
        length=clip.length,
        controls=clip.controls,
        video=clip.frames if video else None,
        target=False,
    )
    record: Record = {}
    runtime = subject.runtime(task)
    with torch.no_grad():
        if task.inputs or video:
            record.update(runtime.encode_media(subject.nets, [asked])[0][0])
        for component in subject.architecture.of_role("text", task):
            record.update(runtime.encode_text(subject.nets, component.name, CAPTIONS[:1])[0])
    return subject.given(task, [record])


def _roll(subject: Subject, task: Task, dit: nn.Module, given: Conditioning) -> torch.Tensor:
    runtime, recipe = subject.runtime(task), _recipe(subject.architecture, task)
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
