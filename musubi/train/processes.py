"""The processes of a run, through accelerate; there may be only one."""

from __future__ import annotations

import contextlib
import os
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


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run.

    Args:
        rank: Of this process.
        world: How many processes there are.
        total: Sums a tensor over the processes.
        wait: Waits for all of them.
    """

    rank: int = 0
    world: int = 1
    total: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    wait: Callable[[], None] = lambda: None


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


def processes(accelerator: Accelerator) -> Processes:
    """What the loop needs of accelerate."""
    if accelerator.num_processes == 1:
        return Processes()

    def total(tensor: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(tensor)
        return tensor

    return Processes(
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        total=total,
        wait=accelerator.wait_for_everyone,
    )


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
