"""A toy architecture: a text table, a linear denoiser, an autoencoder that repeats pixels."""

import gc
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from musubi.config.generate import GenerateConfig
from musubi.config.options import for_architecture
from musubi.errors import CheckpointError
from musubi.plugin import (
    Architecture,
    Component,
    Conditioning,
    Field,
    Geometry,
    KeyMap,
    Lazy,
    LoraTargets,
    Option,
    Quiet,
    Sampling,
    Schema,
    Section,
    Task,
    Traits,
    Variant,
)


@dataclass(frozen=True)
class Here(Lazy):
    """Something that need not be imported."""

    address: str = "here"
    value: Any = None

    def load(self):
        return self.value


class Words(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(256, width)


class Denoiser(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(channels, channels) for _ in range(2)])
        self.text = nn.Linear(width, channels)

    def forward(self, x, t, text, skip=()):
        h = x.movedim(1, -1).to(self.text.weight.dtype)
        h = h + self.text(text.to(h.dtype)).mean(1)[:, None, None, None]
        for i, block in enumerate(self.blocks):
            if i not in skip:
                h = h + torch.tanh(block(h)) * t.view(-1, 1, 1, 1, 1).to(h.dtype)
        return h.movedim(-1, 1)


class Autoencoder(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.out = nn.Linear(channels, 3)

    def decode(self, z):
        rgb = self.out(z.movedim(1, -1)).movedim(-1, 1).sigmoid()
        big = rgb.repeat_interleave(8, 3).repeat_interleave(8, 4)
        return big.repeat_interleave(4, 2)[:, :, 3:]


class ToyRuntime:
    calls: ClassVar[Counter] = Counter()

    def __init__(self, architecture, task, options):
        self.task, self.options = task, options

    def encode_text(self, nets, component, prompts):
        captions = [prompt.text for prompt in prompts]
        ToyRuntime.calls["encode"] += len(captions)
        rows = nets[component].table
        found = [torch.tensor(list(c.encode()) or [0], device=nets.device) for c in captions]
        return [{component: rows(ids)} for ids in found]

    def encode_media(self, nets, clips):
        raise AssertionError("this task has no media")

    def condition(self, batch):
        assert isinstance(batch["words"], list)
        return Conditioning({"text": batch["words"][0][None]})

    def predict(self, dit, x, t, given):
        ToyRuntime.calls["predict"] += 1
        return dit(x, t, given.inputs["text"])

    def rollout(self, recipe, given, device):
        shape = (1, 4, (recipe.frames - 1) // 4 + 1, recipe.height // 8, recipe.width // 8)
        generator = torch.Generator(device).manual_seed(recipe.seed)
        return (yield Section(noise=torch.randn(shape, generator=generator, device=device)))

    def decode(self, nets, latents, recipe=None):
        yield nets["vae"].decode(latents.float())


def _infer(marker, numbers):
    def infer(shapes):
        if marker not in shapes:
            raise CheckpointError(f"It has no {marker}.", fix="Give another file.")
        return numbers(shapes[marker])

    return Here(value=infer)


def _component(name, role, build, marker, numbers, **more):
    return Component(
        name=name,
        role=role,
        help="A toy.",
        build=Here(value=build),
        infer=_infer(marker, numbers),
        dialects=(KeyMap(name="official", marker=(marker,)),),
        dtype="file" if role == "dit" else "float32",
        **more,
    )


SCHEMA = Schema(
    media=(Field(name="latents", dims="CFHW"),), text=(Field(name="words", dims="LD", varlen=True),)
)
SAMPLING = Sampling(
    steps=4,
    flow_shift=3.0,
    guidance_scale=2.0,
    frames=5,
    solver="unipc",
    solvers=("unipc", "vanilla"),
    negative_prompt="bad",
    size=(32, 16),
)

TOY = Architecture(
    name="toy",
    title="Toy",
    components=(
        _component(
            "dit",
            "dit",
            Denoiser,
            "text.weight",
            lambda s: {"channels": s[0], "width": s[1]},
            traits=Traits(stacks=("blocks",), lora=LoraTargets(include=(r"blocks\.\d+",))),
        ),
        _component("vae", "vae", Autoencoder, "out.weight", lambda s: {"channels": s[1]}),
        _component("words", "text", Words, "table.weight", lambda s: {"width": s[1]}),
    ),
    tasks=(
        Task(
            name="t2v",
            title="Text to video",
            requires={"channels": 4},
            components=("vae", "words"),
            schema=SCHEMA,
            sampling=SAMPLING,
        ),
        Task(
            name="wide",
            title="Something that needs more channels",
            requires={"channels": 9},
            components=("vae", "words"),
            schema=SCHEMA,
            sampling=SAMPLING,
        ),
    ),
    variants=(Variant(name="t2v-toy", task="t2v", numbers={"channels": 4, "width": 8}),),
    runtime=Here(value=ToyRuntime),
    suffix="toy",
    geometry=Geometry(channels=4, stride=(4, 8, 8), frame_rate=8.0),
    options=(
        Option(name="gain", type=float, default=1.0, help="x.", commands=("generate",)),
        Option(name="loud", type=bool, default=False, help="x.", commands=("generate",)),
    ),
)


class ToyNets:
    """Networks in memory, counting what is loaded and freed."""

    def __init__(self, made):
        self.made, self.device = made, torch.device("cpu")
        self.log = []
        self.loaded = set()

    def __getitem__(self, name):
        if name not in self.loaded:
            self.loaded.add(name)
            self.log.append(f"load {name}")
        return self.made[name]

    def __contains__(self, name):
        return name in self.made

    def tokenizer(self, name):
        raise AssertionError("no tokenizer here")

    def free(self, name):
        self.loaded.discard(name)
        self.log.append(f"free {name}")


@pytest.fixture(scope="session", autouse=True)
def quick_collection():
    """Every network that is freed collects garbage: what is imported by now need not be looked at."""
    import musubi.generate.run  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def toy():
    ToyRuntime.calls.clear()
    return TOY


@pytest.fixture
def calls(toy):
    return ToyRuntime.calls


@pytest.fixture
def modules():
    torch.manual_seed(5)
    return {"dit": Denoiser(4, 8), "vae": Autoencoder(4), "words": Words(8)}


@pytest.fixture
def nets(modules):
    return ToyNets(modules)


@pytest.fixture
def report():
    return Quiet()


@pytest.fixture
def files(modules, tmp_path):
    paths = {}
    for name, module in modules.items():
        paths[name] = str(tmp_path / f"{name}.safetensors")
        save_file({k: v.clone() for k, v in module.state_dict().items()}, paths[name])
    return paths


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out [1]"


@pytest.fixture
def go(toy, files, out, report):
    """Run the command; what it wrote, by name."""

    from musubi.generate.run import run

    def go(**given):
        model = for_architecture(GenerateConfig, toy, "generate")
        before = set(out.rglob("*")) if out.is_dir() else set()
        chosen = {**files, "save_path": str(out), "infer_steps": 2, **given}
        run(model(**{k: v for k, v in chosen.items() if v is not None}), toy, report)
        return sorted(p for p in set(out.rglob("*")) - before if p.is_file())

    return go
