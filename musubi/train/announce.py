"""What a run shows before its first step: a table, the page in its folder, the trackers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from musubi.config.task import Choice
from musubi.config.train import TrainConfig
from musubi.pages import account
from musubi.pages.live import LivePage
from musubi.pages.run import REPORT
from musubi.plugin import Architecture, Report
from musubi.train import dataset, log
from musubi.train.checkpoints import Names
from musubi.train.dataset import Dataset
from musubi.train.resume import settings_of
from musubi.train.train_loop import Run

if TYPE_CHECKING:
    from accelerate import Accelerator


def page(
    run: Run,
    names: Names,
    architecture: Architecture,
    choice: Choice,
    data: Dataset,
    *,
    per_epoch: int,
    started: float,
    report: Report,
) -> LivePage:
    """Make the page of the run; it is not started yet."""
    items = [data.records.items[i] for i in (*data.training, *data.held)]
    entries = data.file.datasets
    thumbs, more = account.shown(entries)
    device = run.objective.device
    noted = account.Account(
        name=names.name,
        architecture=architecture.name,
        task=choice.variant.name if choice.variant else choice.task.name,
        trained=run.trainable.title,
        total=run.total,
        per_epoch=per_epoch,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        started=started,
        resumed_at=run.position.step,
        datasets=account.datasets(entries, Counter(item.dataset for item in items)),
        buckets=account.buckets(items),
        items=thumbs,
        more=more,
        held=len(data.held),
    )
    return LivePage(names.own, noted, report)


def start_trackers(
    config: TrainConfig, accelerator: Accelerator, trackers: list[str], step: int
) -> None:
    """Start TensorBoard and other trackers; with `--log_config` they also get the settings."""
    log.wandb_login(config, trackers)
    if not trackers or not accelerator.is_main_process:
        return
    accelerator.init_trackers(
        config.log_tracker_name or "network_train",
        config=log.plain(settings_of(config)) if config.log_config else None,
        init_kwargs=log.tracker_arguments(config, step=step),
    )


def tell(run: Run, names: Names, data: Dataset, *, per_epoch: int, report: Report) -> None:
    """Show the table of the run's figures."""
    figures: Mapping[str, object] = {
        "trained": run.trainable.title,
        **dataset.summary(data, per_epoch),
        "steps": run.total,
        "epochs": -(-run.total // per_epoch),
        "processes": run.processes.world,
        "seed": run.config.seed,
        "checkpoints": names.final(),
        "page": names.own / REPORT,
    }
    report.table("Training", ("", ""), figures.items())
