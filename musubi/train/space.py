"""Check before a run that the disk has enough space for its checkpoints and states."""

from __future__ import annotations

import shutil
from pathlib import Path

from musubi.config.train import TrainConfig
from musubi.errors import RunError
from musubi.plugin import Report

_STATE = 12
"""Bytes of a state for each trained number: the weight and two moments in float32, the most that is usual."""


def check_space(
    folder: Path, config: TrainConfig, *, numbers: int, steps: int, epochs: int, report: Report
) -> None:
    """Compare the free disk space with what the run will write.

    Args:
        folder: The folder of the checkpoints, which must exist.
        config: The settings, which say what is saved and kept.
        numbers: How many numbers are trained.
        steps: Of the whole run.
        epochs: Of the whole run.
        report: Gets a warning if there is space for some of the checkpoints, but not for all.

    Raises:
        RunError: There is no space for a single checkpoint.
    """
    weights = numbers * (4 if config.save_precision in ("float", "fp32") else 2)
    averages = 0 if config.ema_decay is None else 1
    state = numbers * (_STATE + 4 * averages)
    one, whole = _needed(config, weights * (1 + averages), state, steps, epochs)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if free < one:
        raise RunError(
            f"The disk of {folder} has {_size(free)} free, and one checkpoint needs {_size(one)}.",
            fix="Free some space, or give an --output_dir on another disk.",
        )
    if free < whole:
        report.warn(
            f"The disk of {folder} has {_size(free)} free, and the checkpoints and states of this run "
            f"need about {_size(whole)}: save less often, or keep fewer with --save_last_n_steps."
        )


def _needed(
    config: TrainConfig, weights: int, state: int, steps: int, epochs: int
) -> tuple[int, int]:
    """Bytes of one save, and the most bytes that all kept saves will take together."""
    saves = 0
    if config.save_every_n_steps:
        count = steps // config.save_every_n_steps
        if config.save_last_n_steps is not None:  # files of the last N steps
            count = min(count, config.save_last_n_steps // config.save_every_n_steps + 2)
        saves += count
    if config.save_every_n_epochs:
        count = epochs // config.save_every_n_epochs
        if config.save_last_n_epochs is not None:
            count = min(count, config.save_last_n_epochs + 1)
        saves += count
    states = saves + 1 if config.save_state else int(config.save_state_on_train_end)
    one = weights + (state if config.save_state else 0)
    return one, (saves + 1) * weights + states * state


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
