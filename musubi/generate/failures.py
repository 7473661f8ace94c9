"""Failures: of one prompt among several, and of decoding when the latents are already made."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from musubi import stopping
from musubi.config.fields import flags
from musubi.config.generate import (
    GenerateConfig,
    LoraFileOptions,
    MachineOptions,
    PromptOptions,
    SamplingOptions,
    VideoOptions,
)
from musubi.config.memory import GenerateMemoryOptions, RoomOptions
from musubi.config.options import Options
from musubi.errors import (
    CheckpointError,
    MusubiError,
    RunError,
    StoppedError,
    line_of,
    system_fix,
    system_reason,
)
from musubi.plugin import Architecture, Report

_SHOWN = 60
# Options that have no effect in a command that only decodes.
_MAKING: tuple[type[Options], ...] = (
    PromptOptions,
    VideoOptions,
    SamplingOptions,
    LoraFileOptions,
    GenerateMemoryOptions,
    RoomOptions,
    MachineOptions,
)
_KEPT = ("fps", "trim_tail_frames", "device", "vae_dtype")
_SHOWS = {"both": "video", "latent": "video", "latent_images": "images"}


class Failures:
    """Collects failures of single prompts or files: each is reported, and the others go on.

    Args:
        report: Shows each failure.
        total: How many prompts or files there are.
        one: The word for one of them, such as "prompt".
    """

    def __init__(self, report: Report, total: int = 0, *, one: str = "prompt") -> None:
        self._report, self._one = report, one
        self.total, self.count = total, 0
        self.names: list[str] = []

    @contextmanager
    def of(
        self,
        name: str,
        *,
        alone: bool = False,
        fatal: tuple[type[Exception], ...] = (CheckpointError,),
    ) -> Iterator[None]:
        """Inside this context, an exception is recorded as the failure of `name`.

        Args:
            name: The prompt or file, for the message.
            alone: There are no others, so the failure is raised.
            fatal: Kinds of failures that all others share, such as a network that cannot be loaded;
                they are raised.
        """
        try:
            yield
        except Exception as error:  # a prompt can fail in any way, and is one of many
            failure = as_failure(name, error)
            if alone or isinstance(failure, (*fatal, StoppedError)):
                if failure is error:
                    raise
                raise failure from error
            self.add(name, failure)

    def add(self, name: str, failure: MusubiError, count: int = 1) -> None:
        """Report a failure, and go on."""
        self._report.warn(f"{name}: {failure}")
        self.names.append(name)
        self.count += count
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def tell(self) -> None:
        """Show at the end what failed.

        Raises:
            RunError: Something failed.
        """
        if self.count:
            raise self.summary()

    def summary(self) -> RunError:
        """What failed, and how many did not."""
        kind = self._one if self.total == 1 else f"{self._one}s"
        rest = self.total - self.count
        done = f" The other {rest} {'is' if rest == 1 else 'are'} done." if rest else ""
        return RunError(
            f"{self.count} of {self.total} {kind} failed: {'; '.join(self.names)}.",
            fix=f"The reasons stand above.{done}",
        )


def as_failure(name: str, error: Exception) -> MusubiError:
    """Turn any exception into an error for the user."""
    if isinstance(error, MusubiError):
        return error
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return RunError(
            f"The memory is full: {line_of(error)}.",
            fix="Give a smaller --video_size, or fewer frames.",
        )
    if isinstance(error, OSError) and error.errno is not None:
        where = "A file" if error.filename is None else str(error.filename)
        return RunError(
            f"{where} could not be used: {system_reason(error)}.", fix=system_fix(error)
        )
    return RunError(
        f"{short(name)!r} failed: {line_of(error)}.", fix="Run again with --debug to see where."
    )


def short(text: str) -> str:
    """The beginning of a prompt, on one line."""
    line = re.sub(r"\s+", " ", text).strip()
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def decoding(
    config: GenerateConfig, architecture: Architecture, task: str, files: Sequence[Path]
) -> str:
    """The command that decodes latent files with the options of `config`, as one line for a shell."""
    left = {name for group in _MAKING for name in group.model_fields} - set(_KEPT)
    left |= {"output_type", "continue_video", "models"}
    left |= {one.flag or "" for one in architecture.inputs}
    for component in architecture.components:
        left |= {f"{component.name}_tokenizer", component.fp8 or ""}
        left |= set() if component.role == "vae" else {component.option}
    words = ["musubi", "generate", "--arch", architecture.name, "--task", task]
    words += ["--latent_path", *map(str, files)]
    for name, flag in flags(type(config)).items():
        value = getattr(config, name)
        if name in left or name.startswith(("lora_weight", "lora_multi")) or value == flag.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [
                f"--{name}",
                *map(str, value if isinstance(value, (list, tuple)) else [value]),
            ]
    shown = _SHOWS.get(config.output_type, config.output_type)
    return stopping.command_line([*words, "--output_type", shown])
