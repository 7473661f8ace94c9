"""The processes of a run, through accelerate; there may be only one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from musubi.config.train import TrainConfig
from musubi.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
# In minutes. One process makes the previews while the others wait, and long videos can take hours.
_WHILE_DRAWING = 24 * 60
# Seconds after a signal; launchers end a process by force 30 seconds after theirs.
_PATIENCE = 12.0


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run.

    Args:
        rank: Of this process.
        world: How many processes there are.
        total: Sums a tensor over the processes, in place.
        step_total: Like `total`, for the sums of a training step. It gives up when this process is
            asked to stop and the other processes do not answer.
        wait: Waits for all of them.
        gather: What each of them gives, by rank.
    """

    rank: int = 0
    world: int = 1
    total: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    step_total: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    wait: Callable[[], None] = lambda: None
    gather: Callable[[Any], list[Any]] = lambda value: [value]


class ProcessLostError(Exception):
    """Another process of the run has ended, and will not take part in what all have to do."""


def start(config: TrainConfig, trackers: list[str], logs: os.PathLike[str]) -> Accelerator:
    """Start accelerate; without its launcher there is one process.

    Raises:
        ConfigError: The device does not support the requested precision.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    handlers: list[Any] = []
    patience = config.ddp_timeout
    if patience is None and config.sample_prompts is not None:
        patience = _WHILE_DRAWING
    if patience is not None:
        handlers.append(InitProcessGroupKwargs(timeout=timedelta(minutes=patience)))
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=trackers or None,  # type: ignore[arg-type]  # names are allowed
            project_dir=os.fspath(logs),
            kwargs_handlers=handlers or None,
        )
    except ValueError as error:
        if "precision" not in str(error):
            raise
        raise ConfigError(
            f"--mixed_precision {config.mixed_precision} cannot be used here: {error}",
            fix="Use --mixed_precision bf16 or no.",
        ) from error
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and accelerator.num_processes == 1:
        # Without accelerate's launcher each process would train alone, and all would write the same
        # files.
        raise ConfigError(
            f"The launcher started {launched} processes, and accelerate cannot join them here.",
            fix="On a CPU, set the environment variable ACCELERATE_USE_CPU=true.",
        )
    return accelerator


def processes(accelerator: Accelerator, stopping: Callable[[], bool] = lambda: False) -> Processes:
    """What the loop needs of accelerate.

    Args:
        accelerator: The processes.
        stopping: Whether a signal asks this process to stop. Launchers send one when another process
            has ended.
    """
    if accelerator.num_processes == 1:
        return Processes()

    def total(tensor: torch.Tensor) -> torch.Tensor:
        _await(torch.distributed.all_reduce(tensor, async_op=True), lambda: False)
        return tensor

    def step_total(tensor: torch.Tensor) -> torch.Tensor:
        _await(torch.distributed.all_reduce(tensor, async_op=True), stopping)
        return tensor

    def wait() -> None:
        total(torch.zeros(1, device=accelerator.device))

    def gather(value: Any) -> list[Any]:
        wait()  # ends when a process is lost, which what follows would not
        found: list[Any] = [None] * accelerator.num_processes
        torch.distributed.all_gather_object(found, value)
        return found

    return Processes(
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        total=total,
        step_total=step_total,
        wait=wait,
        gather=gather,
    )


def _await(work: Any, stopping: Callable[[], bool]) -> None:
    """Wait for what all processes do together, without hanging when one of them is gone.

    Raises:
        ProcessLostError: The connection was closed, or this process was asked to stop and nothing came.
    """
    began: float | None = None
    pause = 0.0
    try:
        while not work.is_completed():
            if stopping():
                began = time.monotonic() if began is None else began
                if time.monotonic() - began > _PATIENCE:
                    raise ProcessLostError
            time.sleep(pause)
            pause = min(pause + 1e-5, 1e-3)
        work.wait()
    except RuntimeError as error:  # what the backends raise; their words differ
        raise ProcessLostError from error


def shared(value: T, accelerator: Accelerator) -> T:
    """The main process's value, sent to all processes."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


@contextlib.contextmanager
def first_alone(accelerator: Accelerator) -> Iterator[None]:
    """The main process runs the body first, then the others, which find the files that it wrote."""
    with accelerator.main_process_first():
        yield


def forget() -> None:
    """Reset accelerate's state, so that another run in this Python process can choose its own precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
