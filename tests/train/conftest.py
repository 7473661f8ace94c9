"""A tiny world to train in: a linear network, records in memory, a run put together by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from musubi.config.options import for_architecture
from musubi.config.train import TrainConfig
from musubi.plugin import (
    Architecture,
    Component,
    Conditioning,
    Field,
    Geometry,
    KeyMap,
    Lazy,
    LoraTargets,
    Quiet,
    Sampling,
    Schema,
    Task,
    Traits,
)
from musubi.train import optim, schedule, seeds, state
from musubi.train.checkpoints import Checkpoints, Names
from musubi.train.log import Metrics
from musubi.train.resume import snapshot
from musubi.train.step import FlowMatchingLoss
from musubi.train.train_loop import Processes, Run
from musubi.train.trainable import FullModel
from musubi.train.update import Update
from musubi.train.validation import Validation


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(torch.tanh(self.inner(x)))


class Dit(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.text = nn.Linear(3, 8)
        self.blocks = nn.ModuleList([Block(8, dropout) for _ in range(2)])
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        h = self.first(x.movedim(1, -1)) + t.view(-1, 1, 1, 1, 1)
        h = h + self.text(text).view(len(text), 1, 1, 1, -1)
        for block in self.blocks:
            h = block(h)
        return self.last(h).movedim(-1, 1)


class Runtime:
    def condition(self, batch: dict[str, Any]) -> Conditioning:
        return Conditioning({"text": batch["text"]}, batch["latents"])

    def predict(self, dit: nn.Module, x: torch.Tensor, t: torch.Tensor, given: Any) -> torch.Tensor:
        return dit(x, t, given.inputs["text"])


class Records:
    """Items with latents 4 x 1 x 2 x 2 and a text of 3 numbers; `seen` lists what was loaded."""

    def __init__(self, n: int = 7, bad: int | None = None) -> None:
        g = torch.Generator().manual_seed(5)
        self.latents = torch.randn(n, 4, 1, 2, 2, generator=g)
        self.texts = torch.randn(n, 3, generator=g)
        if bad is not None:
            self.latents[bad, 0, 0, 0, 0] = float("nan")
        self.seen: list[tuple[int, ...]] = []

    def load(
        self,
        indices: Sequence[int],
        *,
        without_caption: Sequence[bool] | None = None,
        draws: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        self.seen.append(tuple(indices))
        text = self.texts[list(indices)].clone()
        if without_caption is not None:
            text[torch.tensor(without_caption)] = 0
        return {"latents": self.latents[list(indices)], "text": text}


class KilledError(Exception):
    """As if the power went."""


def make(folder: Path, **more: Any) -> Run:
    """A run of the whole tiny network; `more` are options, and the parts named below."""
    dropout = more.pop("dropout", 0.0)
    records = more.pop("records", None) or Records()
    processes = more.pop("processes", None) or Processes()
    resume = more.pop("resume", None)
    n = len(records.latents)
    held = more.pop("held", 0)
    more["validation_split"] = float(held)
    report = more.pop("report", None) or Quiet()
    previews = more.pop("previews", None)
    more.setdefault("max_data_loader_n_workers", 0)
    config = TrainConfig(
        **{"full": True, "learning_rate": 1e-2, "max_train_steps": 8, "seed": 3, **more}
    )
    torch.manual_seed(0)
    dit = Dit(dropout)
    objective = FlowMatchingLoss.of_one(
        Runtime(), TOY.tasks[0], dit, config, torch.device("cpu"), nullcontext, config.seed or 0
    )
    trainable = FullModel(dit, save_dtype=torch.float32)
    optimizer = optim.create(
        config.optimizer_type,
        trainable.groups(config.learning_rate_or_default),
        lr=config.learning_rate_or_default,
        arguments={},
    )
    made = schedule.create(config, optimizer, config.max_train_steps)
    update = Update(
        trainable.parameters(),
        optimizer,
        made,
        None,
        config.max_grad_norm,
        processes.world,
        processes.step_total,
    )

    def batches(epoch: int) -> list[list[int]]:
        g = torch.Generator().manual_seed(seeds.derive(config.seed or 0, "order", epoch))
        order = torch.randperm(n - held, generator=g).tolist()
        return [order[i : i + 2] for i in range(0, n - held, 2)]

    validation = None
    if held:
        indices = list(range(n - held, n))
        validation = Validation(
            objective, indices, {i: str(i) for i in indices}, records.load, 4, (0.0, 1.0)
        )
    names = Names(folder, "toy")
    run = Run(
        config=config,
        report=report,
        objective=objective,
        trainable=trainable,
        update=update,
        source=records,
        names=[f"file{i}.png" for i in range(n)],
        batches=batches,
        total=config.max_train_steps,
        seed=config.seed or 0,
        position=state.Position(),
        metrics=Metrics(names.own / "metrics.jsonl"),
        track=lambda values, step: None,
        checkpoints=Checkpoints(
            names,
            config,
            write=lambda path: trainable.write(path, {"format": "pt"}),
            write_state=lambda path: state.write(
                path, snapshot(run, identity={"kind": "full"}, settings={}, data="d")
            ),
        ),
        processes=processes,
        validation=validation,
        previews=previews,
    )
    if resume is not None:
        found = state.find(names, resume)
        if found is not None:
            state.apply(state.read(found), trainable, update, found)
            run = make_at(run, state.read(found).position)
    return run


def make_at(run: Run, position: state.Position) -> Run:
    run.position = position
    run.__post_init__()
    return run


@pytest.fixture
def world() -> SimpleNamespace:
    return SimpleNamespace(
        make=make, Records=Records, Dit=Dit, Runtime=Runtime, KilledError=KilledError
    )


@pytest.fixture
def weights() -> Callable[[Run], dict[str, torch.Tensor]]:
    return lambda run: {n: t.clone() for n, t in run.trainable.tensors().items()}


# An architecture around the same network, for what `musubi train` puts together.

TOY = Architecture(
    name="toy",
    title="Toy",
    components=(
        Component(
            name="dit",
            role="dit",
            help="The network.",
            build=Lazy("musubi_toy:build"),
            infer=Lazy("musubi_toy:infer"),
            dialects=(KeyMap(name="official", marker=("blocks.{n}.inner.weight",)),),
            dtype="file",
            tiny={"width": 8},
            traits=Traits(stacks=("blocks",), lora=LoraTargets(include=(r"blocks\.\d+\.inner",))),
        ),
    ),
    tasks=(
        Task(
            name="t2v",
            title="Toy",
            requires={},
            components=(),
            schema=Schema(media=(Field(name="latents", dims="CFHW"),), text=()),
            sampling=Sampling(
                steps=2,
                flow_shift=1.0,
                guidance_scale=1.0,
                frames=1,
                solver="vanilla",
                solvers=("vanilla",),
            ),
        ),
    ),
    variants=(),
    runtime=Lazy("musubi_toy:make_runtime"),
    suffix="toy",
    geometry=Geometry(channels=4, stride=(4, 8, 8), frame_rate=8.0, multiple=8),
    modelspec=("toy", "https://example.org/toy"),
)


def build(**numbers: Any) -> Dit:
    return Dit()


def infer(shapes: Any) -> dict[str, Any]:
    return {"width": shapes["first.weight"][0]}


def make_runtime(architecture: Any, task: Any, options: Any) -> Runtime:
    return Runtime()


sys.modules["musubi_toy"] = sys.modules[__name__]


class Set(Records):
    """`Records` as a training set."""

    def __init__(self, n: int = 7, folder: Path = Path()) -> None:
        super().__init__(n)
        self.items = [
            SimpleNamespace(
                key=f"0/{i}",
                name=f"file{i}.png",
                dataset=0,
                bucket=(16, 16, 1),
                batch_size=2,
                repeats=1,
                text_path=folder / f"{i}_toy_te.safetensors",
            )
            for i in range(n)
        ]
        self.digest = f"digest of {n}"

    def empty_text(self, dataset: int) -> dict[str, torch.Tensor]:
        return {"text": torch.zeros(3)}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`train(**options)` runs `musubi train` on the toy; `records` may be replaced."""
    from safetensors.torch import save_file

    from musubi.train import command, dataset

    dit = tmp_path / "dit.safetensors"
    torch.manual_seed(0)
    save_file(Dit().state_dict(), dit)
    entry = SimpleNamespace(
        kind="image",
        index=0,
        weight=None,
        is_reg=False,
        reg_ratio=1.0,
        directory=tmp_path / "cats",
        place=tmp_path / "cats",
        jsonl_file=None,
        inputs=(),
        directories={},
        batch_size=2,
        resolution=(16, 16),
        caption_extension=".txt",
        num_repeats=1,
        enable_bucket=False,
        bucket_no_upscale=False,
    )
    made = SimpleNamespace(records=Set(), report=Quiet(), folder=tmp_path, architecture=TOY)

    def prepare(config: TrainConfig, *args: Any, **more: Any) -> Any:
        return dataset.divide(made.records, SimpleNamespace(datasets=(entry,)), config)

    monkeypatch.setattr(dataset, "prepare", prepare)

    def train(**options: Any) -> Path:
        model = for_architecture(TrainConfig, TOY, "train")
        given = {
            "dit": str(dit),
            "output_dir": str(tmp_path / "out"),
            "output_name": "cat",
            "max_train_steps": 4,
            "seed": 1,
            "log_with": "none",
            "learning_rate": 1e-2,
            "mixed_precision": "no",
            **options,
        }
        command.run(model(**given), TOY, made.report)
        return tmp_path / "out"

    made.train = train
    return made
