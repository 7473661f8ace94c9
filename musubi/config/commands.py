"""The commands: what each is called, the model of its options, and what it calls.

Plain data; nothing is imported until a command is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from musubi.errors import ConfigError
from musubi.plugin.architecture import Architecture, Lazy
from musubi.plugin.option import Command as Place

if TYPE_CHECKING:
    from musubi.config.options import Options, Retired


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of `musubi`.

    Args:
        words: What is typed: ("cache", "latents").
        help: Its first line of help.
        model: The class of its options; `RETIRED` beside it lists the old flags.
        run: `(config, architecture, report)`, or `(config, report)` without an architecture.
        place: Whose architecture options it takes; None when it needs no architecture.
        positional: The option that bare words fill.
        main: The options that `--help` shows; the others are shown by `--help all`. Empty: all.
    """

    words: tuple[str, ...]
    help: str
    model: Lazy
    run: Lazy
    place: Place | None
    positional: str | None = None
    main: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`cache latents`."""
        return " ".join(self.words)

    def options(self, architecture: Architecture | None) -> type[Options]:
        """The model, with the architecture's own options when one is given."""
        model = self.model.load()
        if architecture is None or self.place is None:
            return model
        from musubi.config.options import for_architecture

        return for_architecture(model, architecture, self.place)

    def retired(self) -> tuple[Retired, ...]:
        """Old flags that are accepted and do nothing."""
        module = self.model.address.partition(":")[0]
        return tuple(Lazy(f"{module}:RETIRED").load())


COMMANDS = (
    Command(
        words=("init",),
        help="Look at a folder of clips, and write the files that training them needs.",
        model=Lazy("musubi.config.init:InitConfig"),
        run=Lazy("musubi.init.run:run"),
        place=None,
        positional="folder",
    ),
    Command(
        words=("models", "fetch"),
        help="Fetch the published files of a task from the Hugging Face hub, checked and resumable.",
        model=Lazy("musubi.config.models:FetchConfig"),
        run=Lazy("musubi.models.fetch:run"),
        place=None,
        positional="name",
    ),
    Command(
        words=("models", "find"),
        help="Find model files on this machine by what is in them.",
        model=Lazy("musubi.config.models:FindConfig"),
        run=Lazy("musubi.models.find:run"),
        place=None,
        positional="folders",
    ),
    Command(
        words=("cache", "latents"),
        help="Encode images and videos with the VAE, once, before training.",
        model=Lazy("musubi.config.cache:CacheLatentsConfig"),
        run=Lazy("musubi.plan.caching:run_latents"),
        place="cache latents",
    ),
    Command(
        words=("cache", "text"),
        help="Encode captions with the text encoders, once, before training.",
        model=Lazy("musubi.config.cache:CacheTextConfig"),
        run=Lazy("musubi.plan.caching:run_text"),
        place="cache text",
    ),
    Command(
        words=("cache", "caption"),
        help="Write captions for clips and pictures with a vision-language model.",
        model=Lazy("musubi.config.caption:CaptionConfig"),
        run=Lazy("musubi.caption.run:run"),
        place=None,
        positional="folder",
    ),
    Command(
        words=("cache", "check"),
        help="Check every file of a dataset, and show its buckets. Needs no GPU.",
        model=Lazy("musubi.config.cache:CacheCheckConfig"),
        run=Lazy("musubi.cache.check:run"),
        place="cache latents",
    ),
    Command(
        words=("cache", "preview"),
        help="Show or write what will be trained: contact sheets, a page, clips, or text in the console.",
        model=Lazy("musubi.config.cache:CachePreviewConfig"),
        run=Lazy("musubi.pages.dataset:run"),
        place="cache latents",
    ),
    Command(
        words=("train",),
        help="Train a LoRA, or the whole network with --full, on a cached dataset.",
        model=Lazy("musubi.config.train:TrainConfig"),
        run=Lazy("musubi.train.command:run"),
        place="train",
        main=(
            "dataset_config",
            "task",
            "vram",
            "network_dim",
            "network_alpha",
            "learning_rate",
            "optimizer_type",
            "timestep_sampling",
            "discrete_flow_shift",
            "max_train_steps",
            "output_dir",
            "output_name",
            "save_every_n_steps",
            "save_state",
            "resume",
            "sample_prompts",
            "sample_every_n_steps",
            "watch",
        ),
    ),
    Command(
        words=("generate",),
        help="Make videos or images from prompts.",
        model=Lazy("musubi.config.generate:GenerateConfig"),
        run=Lazy("musubi.generate.run:run"),
        place="generate",
    ),
    Command(
        words=("lora", "merge"),
        help="Merge LoRA files into a checkpoint.",
        model=Lazy("musubi.config.lora:LoraMergeConfig"),
        run=Lazy("musubi.lora.merge:run"),
        place="lora merge",
    ),
    Command(
        words=("lora", "convert"),
        help="Rewrite a LoRA file with the names that another program reads.",
        model=Lazy("musubi.config.lora:LoraConvertConfig"),
        run=Lazy("musubi.lora.convert:run"),
        place=None,
    ),
    Command(
        words=("lora", "ema"),
        help="Average the LoRA files that a run saved; later files have more weight.",
        model=Lazy("musubi.config.lora:LoraEmaConfig"),
        run=Lazy("musubi.lora.ema:run"),
        place=None,
        positional="files",
    ),
    Command(
        words=("lora", "verify"),
        help="Show which tensors of a LoRA file ComfyUI and diffusers load.",
        model=Lazy("musubi.config.lora:LoraVerifyConfig"),
        run=Lazy("musubi.lora.verify:run"),
        place=None,
        positional="files",
    ),
    Command(
        words=("lora", "info"),
        help="Show what a LoRA file holds: rank, alpha, norms, how it was trained.",
        model=Lazy("musubi.config.lora:LoraInfoConfig"),
        run=Lazy("musubi.lora.info:run"),
        place=None,
        positional="files",
    ),
    Command(
        words=("lora", "extract"),
        help="Make a LoRA from the difference between two checkpoints.",
        model=Lazy("musubi.config.lora:LoraExtractConfig"),
        run=Lazy("musubi.lora.extract:run"),
        place=None,
    ),
    Command(
        words=("lora", "resize"),
        help=(
            "Change the rank of a LoRA, add several LoRAs, or convert another kind of adapter to "
            "a LoRA."
        ),
        model=Lazy("musubi.config.lora:LoraResizeConfig"),
        run=Lazy("musubi.lora.resize:run"),
        place=None,
        positional="files",
    ),
    Command(
        words=("lora", "blocks"),
        help="Show how much a LoRA changes in each block.",
        model=Lazy("musubi.config.lora:LoraBlocksConfig"),
        run=Lazy("musubi.lora.blocks:run"),
        place=None,
        positional="files",
    ),
    Command(
        words=("watch",),
        help="Show live pages of the runs on this machine in a browser: samples, curves, settings.",
        model=Lazy("musubi.config.pages:WatchConfig"),
        run=Lazy("musubi.pages.watch:run"),
        place=None,
        positional="folders",
    ),
    Command(
        words=("gallery",),
        help=(
            "Write a web page of generated videos, each with its recipe, to search and to "
            "compare side by side."
        ),
        model=Lazy("musubi.config.pages:GalleryConfig"),
        run=Lazy("musubi.pages.gallery:run"),
        place=None,
        positional="folder",
    ),
    Command(
        words=("plan",),
        help=(
            "Show the memory and time that training or generating will need, and settings that "
            "fit a card."
        ),
        model=Lazy("musubi.config.plan:PlanConfig"),
        run=Lazy("musubi.plan.run:run"),
        place="plan",
    ),
    Command(
        words=("bench",),
        help="Measure the time and memory of a step of a full-size model with random weights.",
        model=Lazy("musubi.config.bench:BenchConfig"),
        run=Lazy("musubi.bench.run:run"),
        place="bench",
    ),
    Command(
        words=("doctor",),
        help=(
            "Check what this computer can do (card, attention, memory, disk), and show what "
            "would help."
        ),
        model=Lazy("musubi.config.doctor:DoctorConfig"),
        run=Lazy("musubi.doctor.run:run"),
        place=None,
    ),
    Command(
        words=("demo",),
        help="Train a tiny model on a CPU in a few minutes, and see every command at work.",
        model=Lazy("musubi.config.demo:DemoConfig"),
        run=Lazy("musubi.demo.run:run"),
        place=None,
    ),
)


def typed(words: Sequence[str]) -> Command | None:
    """The command that the words begin with."""
    return next((c for c in COMMANDS if tuple(words[: len(c.words)]) == c.words), None)


def architectures() -> Iterator[Architecture]:
    """Every installed architecture that can be imported."""
    from musubi import registry  # here, because reading entry points is slow to import

    for name in registry.names():
        try:
            yield registry.find(name)
        except ConfigError:  # `musubi models` says what is wrong with it
            continue


def belongs_elsewhere(key: str, command: Command, architecture: Architecture | None) -> str | None:
    """Where an option that this command does not have belongs, as one sentence; None if nowhere."""
    if command.place is not None:
        others = [a for a in architectures() if a is not architecture]
        owners = [a.name for a in others if key in command.options(a).model_fields]
        if owners:
            return (
                f"It belongs to an architecture: add `--arch {owners[0]}`."
                if architecture is None
                else f"It belongs to `--arch {owners[0]}`, not to {architecture.name!r}."
            )
    for other in COMMANDS:
        if other is not command and key in other.options(architecture).model_fields:
            return f"It belongs to `musubi {other.name}`."
    return None
