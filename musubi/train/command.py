"""`musubi train`: sets up a run, and starts it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from musubi.config.resolve import to_toml
from musubi.config.train import TrainConfig
from musubi.errors import MusubiError, RunError, StoppedError, system_fix, system_reason
from musubi.nn import attention
from musubi.pages.live import LivePage, served
from musubi.pages.run import REPORT
from musubi.plugin import Architecture, Quiet, Report
from musubi.stopping import go_on_with
from musubi.train import log, processes, rate_sweep, state, timesteps
from musubi.train.checkpoints import Names
from musubi.train.lock import Lock
from musubi.train.setup import Setup, output_name
from musubi.train.signals import Stop
from musubi.weights import temporary as temporaries
from musubi.weights.write import atomic

if TYPE_CHECKING:
    from accelerate import Accelerator


def run(config: TrainConfig, architecture: Architecture, report: Report) -> None:
    """Train.

    Raises:
        MusubiError: Something given cannot be used, or the run had to stop.
        StoppedError: The user asked to stop; the state is saved.
    """
    names = Names(Path(config.output_dir), output_name(config, architecture))
    if config.show_timesteps is not None:
        timesteps.show(config, names.own / "timesteps.png", report)
        return
    _make_folder(names)
    trackers = [] if config.find_lr else log.trackers(config)
    accelerator = processes.start(config, trackers, _log_folder(config, names))
    try:
        _run(config, architecture, names, accelerator, trackers, report)
    except BaseException:
        if accelerator.num_processes == 1:  # to take leave of others that are gone would hang
            accelerator.end_training()
        raise
    else:
        accelerator.end_training()
    finally:
        processes.forget()


def _run(
    config: TrainConfig,
    architecture: Architecture,
    names: Names,
    accelerator: Accelerator,
    trackers: list[str],
    report: Report,
) -> None:
    main = accelerator.is_main_process
    with Lock(names) if main else nullcontext():
        if main:
            state.tidy(names)
            for folder in (names.folder, names.own):
                temporaries.sweep(folder, again=True)
        said = report if main else Quiet()
        stop = Stop(said)
        config = rate_sweep.middle(config) if config.find_lr else config
        setup = Setup(config, architecture, names, accelerator, said, stop)
        with attention.use(config.attention, split=config.split_attn):
            if config.find_lr:
                _find_rate(setup, names, said)
                return
            ready = setup.build(trackers)
            if main:
                _write_config(setup.config, architecture, names)
            go_on_with(names.command())
            try:
                watching = served(names.folder, report) if main and config.watch else nullcontext()
                with _shown(setup.page), watching, stop, setup.explained("train"):
                    ready.rehearse(setup.largest)
                    ready.train()
                for remark in ready.trainable.remarks():
                    said.warn(remark)
                if names.final().exists():
                    said.note(f"Done: {names.final()}. Its page: {names.own / REPORT}.")
            finally:
                setup.finish()


def _find_rate(setup: Setup, names: Names, report: Report) -> None:
    """Try learning rates, and say which one to take; nothing but a picture is left."""
    ready = setup.build([])
    rate_sweep.check(setup.config, ready.update)
    with setup.stop, setup.explained("train"):
        found = rate_sweep.sweep(ready, partial(setup.with_rate, ready), report)
    if setup.accelerator.is_main_process:
        rate_sweep.tell(found, setup.config, names.own / rate_sweep.PICTURE, report)


@contextmanager
def _shown(page: LivePage | None) -> Iterator[None]:
    """Inside this context, the page of the run is kept up to date. At the end it shows how the run ended."""
    if page is None:
        yield
        return
    page.begin()
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, (StoppedError, KeyboardInterrupt))
        message = error.what if isinstance(error, MusubiError) else repr(error)
        page.end("stopped" if stopped else "failed", message)
        raise
    page.end("finished")


def _log_folder(config: TrainConfig, names: Names) -> Path:
    if config.logging_dir is None:
        return names.own
    return Path(config.logging_dir) / f"{config.log_prefix or ''}{time.strftime('%Y%m%d%H%M%S')}"


def _make_folder(names: Names) -> None:
    try:
        names.own.mkdir(parents=True, exist_ok=True)
        probe = names.own / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"The folder {names.own} cannot be written: {system_reason(error)}.",
            fix="Give another --output_dir, one that is a folder and may be written.",
        ) from error


def _write_config(config: TrainConfig, architecture: Architecture, names: Names) -> None:
    """Write all settings to config.toml, so that `--config …/config.toml --resume auto` resumes the run."""
    kept = config.model_copy(update=dict.fromkeys((*log.SECRETS, "resume")))
    kept = kept.model_copy(update={"resume_from_huggingface": False})
    try:
        with atomic(names.own / "config.toml") as path:
            path.write_text(to_toml(kept, architecture), encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{names.own / 'config.toml'} cannot be written: {system_reason(error)}.",
            fix=system_fix(error),
        ) from error
