"""`--find_lr`: a few steps with each of several learning rates, which are then compared.

Every rate starts from the same weights and gets the same batches, noise and dropout, so that the rate is
all that differs. What comes of it is measured on batches of the data at fixed noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, StoppedError
from musubi.plugin.report import Progress, Report
from musubi.train import loader, optim
from musubi.train.train_loop import Run, backward
from musubi.train.update import Update
from musubi.weights.write import atomic

FACTORS = tuple(10 ** (n / 2) for n in range(-3, 4))
"""Of the middle rate: from a thirtieth to thirty times."""

PICTURE = "learning_rates.png"

_BATCHES = 8  # that the loss is measured on
_LEVELS = (0.25, 0.5, 0.75)
_WIDTH, _HEIGHT, _MARGIN = 900, 420, 60


@dataclass(frozen=True, kw_only=True)
class SweptRates:
    """What a sweep found.

    Args:
        rates: Those tried, ascending.
        losses: After the steps with each; infinite where the weights were no longer finite.
        before: The loss before a step was made.
        steps: Made with each.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    before: float
    steps: int

    @property
    def best(self) -> int | None:
        """Which rate left the lowest loss; None when none lowered it."""
        lowest = min(range(len(self.rates)), key=self.losses.__getitem__)
        return lowest if self.losses[lowest] < self.before else None

    @property
    def proposal(self) -> float | None:
        """A third of the best rate: what helps most in a few steps is more than a long run stands.

        None where no rate lowered the loss, or where the best is the first or the last that was tried.
        """
        best = self.best
        return None if best in (None, 0, len(self.rates) - 1) else self.rates[best - 1]  # type: ignore[operator]


def middle(config: TrainConfig) -> TrainConfig:
    """The settings with the rate in the middle of the sweep, as one that was given; nothing else moves it."""
    return config.model_copy(
        update={
            "learning_rate": config.learning_rate_or_default,
            "max_train_steps": config.find_lr_steps,
            "max_train_epochs": None,
            "lr_scheduler": "constant",
            "lr_scheduler_type": None,
            "lr_scheduler_args": None,
            "lr_warmup_steps": 0,
            "ema_decay": None,
            "sample_prompts": None,
            "huggingface_repo_id": None,
        }
    )


def check(config: TrainConfig, update: Update) -> None:
    """Refuse an optimizer that chooses its own rate.

    Raises:
        ConfigError: Naming it.
    """
    if optim.adapts(update.optimizer) or optim.relative_step(update.optimizer):
        raise ConfigError(
            f"--find_lr has nothing to find: --optimizer_type {config.optimizer_type} chooses its own rate.",
            fix="Train without --find_lr, or use another optimizer, such as adamw.",
        )


def sweep(run: Run, with_rate: Callable[[float], Update], report: Report) -> SweptRates:
    """Try every rate; afterwards the weights are what they were.

    Args:
        run: Ready to start; its own optimizer is not used.
        with_rate: Makes an optimizer of that rate, and all that a step needs.
        report: Shows the bar.

    Raises:
        StoppedError: The user asked to stop.
    """
    start = {name: t.to("cpu", copy=True) for name, t in run.trainable.tensors().items()}
    assert run.config.learning_rate is not None
    report.note(
        f"Trying {len(FACTORS)} learning rates for {run.total} steps each. Nothing is saved; the schedule, "
        "averages and previews of the run are left out."
    )
    rates = tuple(run.config.learning_rate * factor for factor in FACTORS)
    scaler = run.update.scaler
    scale = None if scaler is None else scaler.state_dict()
    before = _measured(run, run.update)
    losses: list[float] = []
    try:
        with report.progress("Trying rates", len(rates) * run.total, unit="it") as bar:
            for rate in rates:
                run.trainable.load(start)
                if scaler is not None:
                    scaler.load_state_dict(scale)
                losses.append(_tried(replace(run, update=with_rate(rate)), bar))
    finally:
        run.trainable.load(start)
    return SweptRates(rates=rates, losses=tuple(losses), before=before, steps=run.total)


def _tried(run: Run, bar: Progress) -> float:
    """The loss after all steps of one rate."""
    run.trainable.mode(training=True)
    if optim.is_schedule_free(run.update.optimizer):
        run.update.optimizer.train()  # type: ignore[attr-defined]
    threads = loader.workers(run.config.max_data_loader_n_workers)
    with closing(run.feed().steps(threads, done=0, epoch=0, start=0)) as feed:
        for number, (_, step, loaded) in enumerate(feed, start=1):
            if run.stop is not None and run.stop.requested:
                raise StoppedError("Stopped; a sweep of learning rates keeps nothing.")
            backward(run.objective, run.update, number, step, loaded)
            run.update.step()
            run.trainable.after_step()
            bar.advance(1)
            if number == run.total:
                break
    return _measured(run, run.update)


def _measured(run: Run, update: Update) -> float:
    """The mean loss of some batches at fixed noise; infinite when it is not finite."""
    run.trainable.mode(training=False)
    losses: list[torch.Tensor] = []
    with update.as_saved(), torch.no_grad():
        for number, indices in enumerate(run.batches(1)[:_BATCHES]):
            batch = run.source.load(list(indices))
            losses += [run.objective.losses_at(batch, t, "sweep", number) for t in _levels(run)]
    loss = float(torch.cat(losses).mean())
    return loss if math.isfinite(loss) else math.inf


def _levels(run: Run) -> Sequence[float]:
    """Noise levels within those that are trained."""
    low, high = (run.config.min_timestep or 0) / 1000, (run.config.max_timestep or 1000) / 1000
    return [low + (high - low) * part for part in _LEVELS]


def tell(found: SweptRates, config: TrainConfig, path: Path, report: Report) -> None:
    """Say what was found, and draw it.

    Args:
        found: What to say.
        config: Of the run.
        path: Of the picture, PNG.
        report: Is told.
    """
    rows = [
        (f"{rate:.2e}", *(("not finite", "") if loss == math.inf else _change(loss, found.before)))
        for rate, loss in zip(found.rates, found.losses, strict=True)
    ]
    report.table(
        f"After {found.steps} steps with each rate; {found.before:.5f} before",
        ("learning rate", "loss", "change"),
        rows,
    )
    with atomic(path) as temporary:
        picture(found).save(temporary, "PNG")
    report.note(f"Wrote {path}.")
    report.note(_said(found, config))


def _change(loss: float, before: float) -> tuple[str, str]:
    return f"{loss:.5f}", f"{100 * (loss / before - 1):+.2f}%" if before else ""


def _said(found: SweptRates, config: TrainConfig) -> str:
    if found.best is None:
        return (
            f"No rate lowered the loss in {found.steps} steps: give more --find_lr_steps, or a lower "
            f"--learning_rate than {config.learning_rate_or_default:.2g} as the middle."
        )
    best = found.rates[found.best]
    if found.proposal is not None:
        return (
            f"Proposal: --learning_rate {found.proposal:.1e}, a third of {best:.1e}, which lowered the "
            "loss most in these few steps: a long run stands less."
        )
    which = "lowest" if found.best == 0 else "highest"
    return (
        f"The {which} rate, {best:.1e}, lowered the loss most: sweep again around it, with "
        f"--learning_rate {best:.1e}."
    )


def picture(found: SweptRates) -> Image.Image:
    """Loss over the rate, on a logarithmic scale, with the proposal."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = _MARGIN, _MARGIN, _WIDTH - _MARGIN, _HEIGHT - _MARGIN
    lowest = min(found.before, *found.losses)
    # What grew is drawn as far as it tells something.
    highest = found.before + max((found.before - lowest) * 0.5, abs(found.before) * 0.01, 1e-12)

    def at(number: float, loss: float) -> tuple[float, float]:
        height = (min(loss, highest) - lowest) / (highest - lowest)
        return left + (right - left) * number / (len(found.rates) - 1), bottom - (
            bottom - top
        ) * height

    draw.text(
        (left, 18),
        f"Loss after {found.steps} steps with each learning rate; grey line: before, {found.before:.5f}",
        "black",
    )
    draw.line((at(0, found.before), at(len(found.rates) - 1, found.before)), fill=(170, 170, 170))
    draw.line((left, bottom, right, bottom), fill="black")
    points = [at(i, loss) for i, loss in enumerate(found.losses)]
    draw.line(points, fill=(84, 130, 196), width=2)
    for (x, y), rate, loss in zip(points, found.rates, found.losses, strict=True):
        chosen = rate == found.proposal
        colour = (200, 80, 40) if chosen else (84, 130, 196)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour)
        draw.text((x - 22, bottom + 8), f"{rate:.1e}", colour if chosen else "black")
        text = "not finite" if loss == math.inf else f"{loss:.4f}"
        draw.text((x - 18, y - 22), text, "black")
        if chosen:
            draw.text((x - 22, bottom + 24), "proposal", colour)
    return image
