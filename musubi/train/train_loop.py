"""The training loop: make a step, log it, save, validate, make previews, stop."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from musubi import stopping
from musubi.config.train import TrainConfig
from musubi.errors import RunError, StoppedError
from musubi.pages import columns
from musubi.plugin.report import Progress, Quiet, Report
from musubi.stopping import StopSignal
from musubi.train import loader, log, optim, seeds
from musubi.train.checkpoints import Checkpoints
from musubi.train.loader import Loader, Micro, RecordSource, Step
from musubi.train.log import Mark, Metrics, StepNumbers, Window
from musubi.train.processes import Processes, ProcessLostError
from musubi.train.signals import Stop
from musubi.train.state import Position
from musubi.train.step import FlowMatchingLoss, tokens_of
from musubi.train.trainable import Trainable
from musubi.train.update import Update
from musubi.train.validation import Validation

SHOWN = 8  # items named in an error
WHILE_SAVING = 10.0  # seconds that the first process is left to save the state


class Previews(Protocol):
    """Makes previews; see `musubi.train.preview`."""

    def draw(self, *, step: int, epoch: int | None) -> None:
        """Generate and write the previews; failures are reported, not raised."""
        ...


class RunPage(Protocol):
    """Shows the run while it goes on; see `musubi.pages.live`."""

    def tick(self) -> None:
        """A line of metrics was written."""
        ...

    def renew(self) -> None:
        """A checkpoint or a preview was written."""
        ...


def backward(
    objective: FlowMatchingLoss,
    update: Update,
    number: int,
    step: Step,
    loaded: Iterator[tuple[Micro, Any]],
) -> tuple[dict[str, torch.Tensor], int]:
    """Add the gradients of one step's batches.

    Args:
        objective: The loss.
        update: Holds the gradients.
        number: Of the step, from 1.
        step: What it is made of.
        loaded: Its batches.

    Returns:
        "micro N" → the part of the loss that a batch has, and how many tokens all have.
    """
    losses: dict[str, torch.Tensor] = {}
    tokens = 0
    for micro, batch in loaded:
        tokens += tokens_of(batch, objective.task)
        loss = objective.training_loss(batch, number, micro.number) / step.total
        update.backward(loss)
        losses[f"micro {micro.number}"] = loss.detach()
        kept = objective.preserving_loss(batch, number, micro.number)
        if kept is not None:  # its graph is made only after the graph of the loss is freed
            update.backward(kept / step.total)
            losses[f"micro {micro.number}"] += kept.detach() / step.total
    return losses, tokens


@dataclass(frozen=True)
class _Made:
    """A step that is done but not yet logged."""

    number: int
    epoch: int
    step: Step
    figures: StepNumbers
    rate: float
    extra: Mapping[str, float]


@dataclass(kw_only=True)
class Run:
    """A run that is ready to start.

    Args:
        config: The settings.
        report: Shows the bar.
        objective: The loss.
        trainable: What is trained.
        update: Makes the step.
        source: The records.
        names: Item → its name in messages.
        batches: Epoch, from 1 → its batches, each a list of items, for all processes.
        total: Optimizer steps.
        seed: Of the run.
        position: Where to start.
        metrics: `metrics.jsonl`.
        track: A function that sends figures to the trackers.
        checkpoints: Writes the checkpoints.
        processes: The processes of the run.
        validation: Measures held-back items, or None.
        previews: Makes previews, or None.
        stop: Says whether the user asked to stop (Ctrl+C).
        page: Shows the run, or None.
    """

    config: TrainConfig
    report: Report
    objective: FlowMatchingLoss
    trainable: Trainable
    update: Update
    source: RecordSource
    names: Sequence[str]
    batches: Callable[[int], Sequence[Sequence[int]]]
    total: int
    seed: int
    position: Position
    metrics: Metrics
    track: Callable[[Mapping[str, float], int], None]
    checkpoints: Checkpoints
    processes: Processes = field(default_factory=Processes)
    validation: Validation | None = None
    previews: Previews | None = None
    stop: Stop | None = None
    page: RunPage | None = None

    def __post_init__(self) -> None:
        self.batches = functools.lru_cache(maxsize=4)(self.batches)
        self._window = Window(self.position.window, self._steps_per_epoch(1))
        self._pending: _Made | None = None
        self._bar: Progress | None = None
        self._stop_agreed = self._save_agreed = self._save_asked = False
        self._saved_at = time.monotonic()

    def rehearse(self, largest: Sequence[int]) -> None:
        """Try the batch that needs the most memory first, without learning from it, so that a run that does not fit fails at once.

        On devices without a memory limit of their own nothing is tried.

        Args:
            largest: The items of that batch.
        """
        if self.objective.device.type != "cuda" or self.position.step >= self.total:
            return
        self.trainable.mode(training=True)
        batch = self.source.load(largest)
        self.update.backward(self.objective.training_loss(batch, 0, 0))
        for parameter in self.trainable.parameters():
            parameter.grad = None

    def train(self) -> None:
        """Train to the end.

        Raises:
            StoppedError: The user asked to stop; the state is saved.
            RunError: A loss is not finite, the disk is full, or a process is gone.
        """
        try:
            self._train()
        except ProcessLostError as error:
            self._go_alone(error)

    def _train(self) -> None:
        done = self.position.step
        if self.processes.rank == 0:
            self.metrics.start(done)
        self.trainable.mode(training=True)
        if optim.is_schedule_free(self.update.optimizer):
            self.update.optimizer.train()  # type: ignore[attr-defined]
        if done == 0:
            self._measure(when=self.validation is not None)
            self._preview(when=self.config.sample_at_first, epoch=None)
        else:
            self._measure(when=self._validation_due(self._epoch_is_over()))
        self._stop_aside(last=done >= self.total or self._ended_early())
        if done >= self.total or self._ended_early():
            self.report.note(f"The run is complete: {done} of {self.total} steps are made.")
            self._save(self._due_at_end())
            return
        threads = loader.workers(self.config.max_data_loader_n_workers)
        with ExitStack() as stack:
            self._bar = stack.enter_context(
                self.report.progress("steps", self.total, done=done, unit="it")
            )
            steps = stack.enter_context(
                closing(
                    self.feed().steps(
                        threads, done=done, epoch=self.position.epoch, start=self.position.batch
                    )
                )
            )
            for epoch, step, loaded in steps:
                self._step(epoch, step, loaded)
                if self.position.step >= self.total or self._ended_early():
                    break

    # the order of things

    def feed(self) -> Loader:
        """Its steps with their batches."""
        return Loader(
            source=self.source,
            batches=self.batches,
            total=self.total,
            accumulation=self.config.gradient_accumulation_steps,
            rank=self.processes.rank,
            world=self.processes.world,
            dropout=self.config.caption_dropout_rate,
            seed=self.seed,
        )

    def _step(self, epoch: int, step: Step, loaded: Iterator[tuple[Micro, Any]]) -> None:
        number = self.position.step + 1
        began = Mark(self.objective.device)
        losses, tokens = backward(self.objective, self.update, number, step, loaded)
        loss = sum(losses.values(), torch.zeros((), device=self.objective.device))
        rate = self._rate()
        words = (float(self._asked()), float(tokens), float(self._minutes_are_over()))
        asked, seen, saving = (torch.full_like(loss, word) for word in words)
        if self.processes.world > 1:
            together = torch.stack([loss, asked, seen, saving])
            loss, asked, seen, saving = self.processes.step_total(together).unbind()
        norm = self.update.step()
        figures = {"loss": loss, "grad_norm": norm, "stop": asked, "tokens": seen}
        figures |= {"save": saving, **losses}
        extra = self.trainable.after_step()
        if self.update.average is not None:
            self.update.average.update()
        self._tell()
        figures_read = StepNumbers(figures, began)
        # Only now: until here the state is that of the step before.
        self.position.epoch, self.position.size = epoch, len(self.batches(epoch))
        self._pending = _Made(number, epoch, step, figures_read, rate, extra)
        self.position.step, self.position.batch = number, step.end
        self._after_step(step)

    def _after_step(self, step: Step) -> None:
        number, epoch = self.position.step, self.position.epoch
        epoch_ends = self._epoch_is_over()
        last = number >= self.total
        stopping = self._stopping() and not last
        now, self._save_agreed = self._save_agreed, False
        due = self.checkpoints.due(
            step=number, epoch=epoch, epoch_ends=epoch_ends, last=last, now=now
        )
        validating = self._validation_due(epoch_ends) or (last and self.validation is not None)
        drawing, for_epoch = self._preview_due(epoch_ends)
        if due or stopping or validating or drawing or last:
            self._tell()
        if due:
            self._save(due)
        if stopping:
            self._stop()
        self._measure(when=validating)
        self._preview(when=drawing, epoch=epoch if for_epoch else None)
        if self._ended_early() and not last:
            self.report.note(
                f"Stopped early: the validation loss was lowest, {self.position.best:.5f}, after step "
                f"{self.position.best_step}."
            )
            self._save(self._due_at_end())
        else:
            self._stop_aside(last=last)

    def _asked(self) -> bool:
        return self.stop is not None and self.stop.requested

    def _stopping(self) -> bool:
        if self.processes.world > 1:
            return self._stop_agreed  # all must stop at the same step
        return self._asked()

    def _stop_aside(self, *, last: bool) -> None:
        """Stop after validation or previews, if a signal came during them."""
        if self._asked() and self.processes.world == 1 and not last:
            self._stop()

    def _stop(self) -> None:
        folder = self.checkpoints.names.state(self.checkpoints.names.step(self.position.step))
        if self.processes.rank == 0:
            folder = self.checkpoints.save_state(self.position.step)
        self.processes.wait()
        raise StoppedError(
            f"Stopped after step {self.position.step} of {self.total}; the state is {folder}.",
            fix=f"Go on with: {self.checkpoints.names.command()}",
        )

    def _go_alone(self, error: Exception) -> None:
        """Save the state of the last step that all processes made, and end."""
        step, names = self.position.step, self.checkpoints.names
        what = (
            f"Another process of this run has ended or does not answer; stopped after step {step}"
        )
        if self.processes.rank > 0:
            if not self._asked():
                time.sleep(WHILE_SAVING)  # a launcher ends all when one ends
            raise RunError(f"{what}.", fix="What it said says why.") from error
        with contextlib.suppress(RunError):  # figures of a step that failed everywhere
            self._tell()
        folder = self.checkpoints.save_state(step)
        stopping.fail()
        raise RunError(
            f"{what}; the state is {folder}.",
            fix=f"What the other one said says why. Go on with: {names.command()}",
        ) from error

    # telling

    def _rate(self) -> float:
        rates = self.update.schedule.get_last_lr()
        return float(rates[0])

    def _tell(self) -> None:
        """Read and log the figures of the previous step, which the device has finished by now."""
        if self._pending is None:
            return
        made, self._pending = self._pending, None
        number, epoch, extra = made.number, made.epoch, made.extra
        read = made.figures.read()
        self._stop_agreed = self._stop_agreed or read["stop"] > 0
        self._save_agreed = read["save"] > 0
        loss, norm = read["loss"], read["grad_norm"]
        bad_norm = not math.isfinite(norm) and self.update.scaler is None
        if not math.isfinite(loss) or bad_norm:
            self._refuse(number, made.step, read)
        average = self._window.add(loss)
        self.position.window = list(self._window.losses)
        told = {columns.LOSS.key: loss, columns.AVERAGE.key: average, columns.RATE.key: made.rate}
        told |= {columns.GRADIENT.key: norm, **extra}
        for group in self.update.optimizer.param_groups[:1]:
            if "d" in group and group["lr"] is not None:  # Prodigy and its kin
                told[columns.ADAPTED_RATE.key] = float(group["d"]) * float(group["lr"])
        told |= {columns.TOKENS.key: int(read["tokens"]), columns.SECONDS.key: made.figures.seconds}
        told |= log.memory(self.objective.device)
        self._record(told, number, epoch)
        if self._bar is not None:
            self._bar.advance(1, avr_loss=average)

    def _record(self, figures: Mapping[str, float], step: int, epoch: int) -> None:
        if self.processes.rank == 0:
            # JSON has no infinity, which float16's scaler lets a gradient be.
            finite = {k: v if math.isfinite(v) else None for k, v in figures.items()}
            self.metrics.write({"step": step, "epoch": epoch, **finite})
            if self.page is not None:
                self.page.tick()
        self.track({**figures, "epoch": epoch}, step)

    def _refuse(self, number: int, step: Step, read: Mapping[str, float]) -> None:
        bad = [m for m in step.micros if not math.isfinite(read.get(f"micro {m.number}", 0.0))]
        items = [self.names[i] for m in (bad or step.micros) for i in m.indices]
        if self.processes.world > 1:  # the sums are everybody's, and so all come here
            shares = self.processes.gather((bool(bad), items))
            guilty = any(found for found, _ in shares)
            items = [name for found, names in shares for name in names if found or not guilty]
            if self.processes.rank > 0:
                raise SystemExit(RunError.exit_code)
        shown = ", ".join(items[:SHOWN]) + (
            f" and {len(items) - SHOWN} more" if items[SHOWN:] else ""
        )
        what = "loss" if bad or not math.isfinite(read["loss"]) else "gradient"
        raise RunError(
            f"The {what} of step {number} is not finite; its items: {shown}. "
            "Nothing was saved after it.",
            fix="Look at these items, lower --learning_rate, or use --mixed_precision bf16; "
            "then go on from the last state or checkpoint.",
        )

    # saving

    def _save(self, due: Sequence[tuple[str, Path]]) -> None:
        position = self.position
        if self.processes.rank == 0:
            for kind, path in due:
                number = position.epoch if kind == "epoch" else position.step
                self.checkpoints.save(kind, path, number=number)
                self.report.note(f"Saved {path}.")
            if self.page is not None:
                self.page.renew()
        self._saved_at, self._save_asked = time.monotonic(), False
        self.processes.wait()

    def _due_at_end(self) -> list[tuple[str, Path]]:
        return [("final", self.checkpoints.names.final())]

    def _minutes_are_over(self) -> bool:
        """Whether it is time to save by the clock; the first process's clock decides."""
        minutes = self.config.save_every_n_minutes
        if minutes is None or self.processes.rank != 0 or self._save_asked:
            return False
        self._save_asked = time.monotonic() - self._saved_at >= minutes * 60
        return self._save_asked

    def _judge(self, loss: float) -> None:
        """Save the checkpoint if it is the best so far; otherwise count one more validation without
        improvement.
        """
        position = self.position
        # Before the first step nothing was learned; a resumed run validates its step again.
        if position.step <= position.judged:
            return
        position.judged = position.step
        if position.best is not None and not loss < position.best:
            position.worse += 1
        elif math.isfinite(loss):
            position.best, position.best_step, position.worse = loss, position.step, 0
            if self.config.save_best is not None:
                self._save([("best", self.checkpoints.names.best())])

    def _ended_early(self) -> bool:
        most = self.config.early_stop
        return most is not None and self.position.worse >= most

    # looking

    def _validation_due(self, epoch_ends: bool) -> bool:
        if self.validation is None:
            return False
        steps, epochs = self.config.validate_every_n_steps, self.config.validate_every_n_epochs
        if steps is None and epochs is None:
            epochs = 1
        by_step = bool(steps) and self.position.step % (steps or 1) == 0
        by_epoch = bool(epochs) and epoch_ends and self.position.epoch % (epochs or 1) == 0
        return by_step or by_epoch

    def _measure(self, *, when: bool) -> None:
        if not when or self.validation is None:
            return
        with self._aside():
            try:
                found = self.validation.measure(self.report)
            except StopSignal:
                return
        self._record(found, self.position.step, self.position.epoch)
        self.report.note(
            f"Validation loss {found['loss/validation']:.5f} "
            f"± {found['loss/validation_error']:.5f} after step {self.position.step}."
        )
        self._judge(found[columns.VALIDATION.key])

    def _preview_due(self, epoch_ends: bool) -> tuple[bool, bool]:
        """Whether previews are due, and whether the epoch is why."""
        steps, epochs = self.config.sample_every_n_steps, self.config.sample_every_n_epochs
        by_epoch = bool(epochs) and epoch_ends and self.position.epoch % (epochs or 1) == 0
        by_step = bool(steps) and self.position.step % (steps or 1) == 0
        return by_epoch or by_step, by_epoch

    def _preview(self, *, when: bool, epoch: int | None) -> None:
        """Make previews: each process makes its share, and the first one reports for all."""
        if not when or self.previews is None:
            return
        quiet = self.report if isinstance(self.report, Quiet) else Quiet()
        quiet.notes.clear()
        quiet.warnings.clear()
        with self._aside():
            try:
                self.previews.draw(step=self.position.step, epoch=epoch)
            except StopSignal:
                self.report.note("The previews are left unfinished.")
        if self.processes.world > 1:
            told = self.processes.gather((quiet.notes, quiet.warnings))
            for notes, warnings in told[1:] if self.processes.rank == 0 else ():
                for text in notes:
                    self.report.note(text)
                for text in warnings:
                    self.report.warn(text)
        if self.page is not None:
            self.page.renew()

    def _aside(self) -> ExitStack:
        """A context for validation and previews: evaluation mode and averaged weights; afterwards
        everything, random generators too, is restored.
        """
        stack = ExitStack()
        kept = seeds.capture()
        stack.callback(lambda: seeds.restore(kept))
        stack.callback(lambda: self.trainable.mode(training=True))
        self.trainable.mode(training=False)
        stack.enter_context(self.update.as_drawn())
        stack.enter_context(torch.no_grad())
        return stack

    # places

    def _epoch_is_over(self) -> bool:
        return self.position.epoch > 0 and self.position.batch >= self.position.size

    def _steps_per_epoch(self, epoch: int) -> int:
        return loader.steps_per_epoch(
            len(self.batches(epoch)),
            self.config.gradient_accumulation_steps,
            self.processes.world,
        )
