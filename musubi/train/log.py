"""What a run logs: `metrics.jsonl`, trackers, the progress bar."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from musubi.config.saving import LoggingOptions
from musubi.errors import ConfigError, MissingPackageError, system_reason
from musubi.pages import columns
from musubi.untrusted import parse_json, parse_toml, read_text
from musubi.weights.write import atomic, not_written


class Metrics:
    """`metrics.jsonl`: one line for each step and each validation. `musubi.pages.columns` lists its keys."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, step: int) -> None:
        """Remove the lines after `step`: a run that resumes at `step` writes them again.

        The validation of `step` itself is removed too, since it comes after the state is saved.
        """
        kept: list[bytes] = []
        if step and self.path.exists():
            for line in self.path.read_bytes().splitlines(keepends=True):
                try:
                    entry = parse_json(line)
                    at = entry["step"]
                except (ValueError, KeyError, TypeError):
                    break  # the line that was being written when the run was killed
                if at < step or (at == step and columns.LOSS.key in entry):
                    kept.append(line)
        with atomic(self.path) as temporary:
            temporary.write_bytes(b"".join(kept))

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add a line; the line is in the file when this method returns.

        Raises:
            RunError: The line cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        except OSError as error:
            raise not_written(self.path, error) from error


class Window:
    """The running average of the loss over one epoch of steps."""

    def __init__(self, losses: Iterable[float], size: int) -> None:
        self.losses: deque[float] = deque(losses, maxlen=max(1, size))

    def add(self, loss: float) -> float:
        """Add a loss, and return the new average."""
        self.losses.append(loss)
        return math.fsum(self.losses) / len(self.losses)


class Mark:
    """A point in time of the device's work: an event on the device's stream, or, on the CPU, the
    host's clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._event: Any = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        self._time = time.perf_counter()

    def wait(self) -> None:
        """Wait until the device has reached this point."""
        if self._event is not None:
            self._event.synchronize()

    def since(self, earlier: Mark) -> float:
        """Seconds between two points; the device must have reached the later one."""
        if self._event is not None and earlier._event is not None:
            return earlier._event.elapsed_time(self._event) / 1000
        return self._time - earlier._time


def memory(device: torch.device) -> dict[str, float]:
    """GiB of memory: the device's peak so far, and what this process holds now."""
    found = {columns.HOST_MEMORY.key: psutil.Process().memory_info().rss / 2**30}
    if device.type == "cuda":
        found[columns.DEVICE_MEMORY.key] = torch.cuda.max_memory_allocated(device) / 2**30
    return {key: round(value, 3) for key, value in found.items()}


class StepNumbers:
    """Numbers of one step, copied from the device without making the device wait.

    The copy into pinned memory starts at once. `read` waits only for this copy; by then the device
    works on the next step.

    Args:
        figures: Name → one number, on the device.
        began: When the step began.
    """

    def __init__(self, figures: Mapping[str, torch.Tensor], began: Mark) -> None:
        self.names = list(figures)
        self._began = began
        stacked = torch.stack([f.detach().float().reshape(()) for f in figures.values()])
        if stacked.is_cuda:
            host = torch.empty(len(self.names), dtype=torch.float32, pin_memory=True)
            host.copy_(stacked, non_blocking=True)
            self._ended = Mark(stacked.device)
            stacked = host
        else:
            self._ended = Mark(stacked.device)
        self._values = stacked

    @property
    def seconds(self) -> float:
        """Seconds from the beginning of the step to its last number. Call `read` first."""
        return self._ended.since(self._began)

    def read(self) -> dict[str, float]:
        """Name → number."""
        self._ended.wait()
        return dict(zip(self.names, self._values.tolist(), strict=True))


def trackers(options: LoggingOptions) -> list[str]:
    """The names of the trackers to use.

    Raises:
        MissingPackageError: A requested tracker is not installed.
    """
    asked = options.log_with
    if asked == "none":
        return []
    if asked is None:
        return ["tensorboard"] if _installed("tensorboard") else []
    wanted = ["tensorboard", "wandb"] if asked == "all" else [asked]
    for name in wanted:
        if not _installed(name):
            raise MissingPackageError(
                f"--log_with {asked} needs {name}, which is not installed.",
                fix=f"Run `pip install musubi-diffusion[{name}]`.",
            )
    return wanted


def tracker_arguments(options: LoggingOptions, *, step: int) -> dict[str, dict[str, Any]]:
    """Tracker → the arguments it is started with.

    Args:
        options: The logging options.
        step: The step that a resumed run starts from; TensorBoard drops later entries.

    Raises:
        ConfigError: `--log_tracker_config` cannot be read.
    """
    arguments: dict[str, dict[str, Any]] = {}
    if options.log_tracker_config:
        path = Path(options.log_tracker_config)
        try:
            read = parse_toml(read_text(path))
        except (OSError, ValueError) as error:
            reason = system_reason(error) if isinstance(error, OSError) else error
            raise ConfigError(
                f"--log_tracker_config {path} cannot be read: {reason}.",
                fix="Give a TOML file with a table for each tracker, such as [wandb].",
            ) from error
        odd = [name for name, value in read.items() if not isinstance(value, dict)]
        if odd:
            raise ConfigError(
                f"--log_tracker_config {path}: {odd[0]!r} stands in no table.",
                fix="Put it under [tensorboard] or [wandb].",
            )
        arguments = dict(read)
    if options.wandb_run_name:
        arguments.setdefault("wandb", {})["name"] = options.wandb_run_name
    if step:
        arguments.setdefault("tensorboard", {}).setdefault("purge_step", step + 1)
    return arguments


def wandb_login(options: LoggingOptions, names: Iterable[str]) -> None:
    """Log in to W&B when a key was given."""
    if "wandb" in names and options.wandb_api_key:
        import wandb  # pyright: ignore[reportMissingImports]

        wandb.login(key=options.wandb_api_key)


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as trackers take them: numbers and text, no secrets."""
    return {
        key: value if isinstance(value, (bool, int, float, str)) else str(value)
        for key, value in settings.items()
        if value is not None and key not in SECRETS
    }


SECRETS = ("wandb_api_key", "huggingface_token")


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
