"""The options of `musubi plan`: those of `train` and `generate`, and what the plan is about."""

from __future__ import annotations

from typing import Any, Literal

from musubi.config import generate, train
from musubi.config.generate import PromptOptions, SamplingOptions, VideoOptions
from musubi.config.memory import GenerateMemoryOptions, RoomOptions, TrainMemoryOptions
from musubi.config.optimization import (
    LoraOptions,
    OptimizerOptions,
    ScheduleOptions,
    TimestepOptions,
)
from musubi.config.options import Options, Retired, for_architecture, option
from musubi.config.saving import (
    HubOptions,
    LoggingOptions,
    MetadataOptions,
    PreviewOptions,
    SavingOptions,
)
from musubi.config.train import AttentionOptions, DtypeOptions, LengthOptions
from musubi.plugin.architecture import Architecture

_PLAN = "Plan"


class SubjectOptions(Options):
    """The command to plan for, and its sizes."""

    # `for` is a word of Python's; the flag is `--for`.
    purpose: Literal["train", "generate"] = option(
        "train", "The command to plan.", group=_PLAN, aliases=("for",)
    )
    size: str | None = option(
        None,
        "Without --dit: the published variant, or the end of its name, such as 14B. Also takes "
        "the size of the video, such as 832x480.",
        group=_PLAN,
    )
    width: int | None = option(
        None, "Width of the video in pixels, instead of the dataset's buckets.", group=_PLAN, ge=16
    )
    height: int | None = option(None, "Height of the video in pixels.", group=_PLAN, ge=16)
    frames: int | None = option(None, "Frames of the video.", group=_PLAN, ge=1)
    batch_size: int = option(1, "Videos per step, with --width and --height.", group=_PLAN, ge=1)
    card: str | None = option(
        None,
        "The card to plan for, such as 'RTX 4090'; the one in this computer when not given.",
        group=_PLAN,
        metavar="NAME",
    )
    json_file: str | None = option(
        None,
        "Also write the figures to this file as JSON; with - they are printed instead of the "
        "tables.",
        group=_PLAN,
        metavar="FILE",
        aliases=("json",),
    )


class PlanConfig(
    SubjectOptions,
    RoomOptions,
    TrainMemoryOptions,
    GenerateMemoryOptions,
    HubOptions,
    LoggingOptions,
    PreviewOptions,
    MetadataOptions,
    SavingOptions,
    TimestepOptions,
    ScheduleOptions,
    OptimizerOptions,
    LoraOptions,
    DtypeOptions,
    AttentionOptions,
    LengthOptions,
    generate.MachineOptions,
    generate.OutputOptions,
    generate.LoraFileOptions,
    SamplingOptions,
    VideoOptions,
    PromptOptions,
):
    """Everything `musubi plan` takes, beside the architecture's own."""

    @property
    def width_height(self) -> tuple[int, int] | None:
        """Width and height, where `--size 832x480` or `--video_size` gives them."""
        if self.video_size is not None:
            return self.video_size[1], self.video_size[0]
        words = (self.size or "").lower().split("x")
        if len(words) == 2 and all(word.isdigit() for word in words):
            return int(words[0]), int(words[1])
        return None

    @property
    def variant(self) -> str | None:
        """The published variant that `--size` names."""
        return None if self.width_height is not None and self.video_size is None else self.size


def as_plan(config: Options, architecture: Architecture) -> PlanConfig:
    """The options of any command as `plan` takes them; what the command has not keeps its default.

    Args:
        config: The options of a command.
        architecture: Whose own options the command has.
    """
    if isinstance(config, PlanConfig):
        return config
    model: Any = for_architecture(PlanConfig, architecture, "plan")
    shared = model.model_fields.keys() & type(config).model_fields.keys()
    values = {name: getattr(config, name) for name in shared}
    purpose = "generate" if isinstance(config, generate.GenerateConfig) else "train"
    return model.model_construct(**values, purpose=purpose)


_HERE = frozenset(PlanConfig.model_fields)
RETIRED: tuple[Retired, ...] = tuple(
    {r.name: r for r in (*train.RETIRED, *generate.RETIRED) if r.name not in _HERE}.values()
)
