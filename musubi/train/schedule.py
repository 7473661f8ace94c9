"""The learning rate as a function of the optimizer step."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from musubi.config.optimization import ScheduleOptions, literals
from musubi.errors import ConfigError, counted, did_you_mean
from musubi.train import optim

NAMES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "warmup_stable_decay",
    "rex",
    "piecewise_constant",
)

Factor = Callable[[int], float]


class Schedule(Protocol):
    """What the training loop needs from a schedule."""

    def step(self) -> None: ...
    def get_last_lr(self) -> Sequence[float | torch.Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Still:
    """A schedule that does nothing, for optimizers that set their own rate."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        """Do nothing."""

    def get_last_lr(self) -> list[float]:
        """The rate of each group that the optimizer used last."""
        own = getattr(self.optimizer, "_get_lr", None)
        if optim.relative_step(self.optimizer) and own is not None:
            return [_adafactor_lr(self.optimizer, own, g) for g in self.optimizer.param_groups]
        return [float(g.get("scheduled_lr", g["lr"])) for g in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def create(options: ScheduleOptions, optimizer: Optimizer, total: int) -> Schedule:
    """Make the schedule of a run.

    Args:
        options: What was asked for.
        optimizer: The optimizer whose rate the schedule sets.
        total: Optimizer steps of the whole run, whatever the number of processes or the
            accumulation.

    Raises:
        ConfigError: An unknown name, or settings that contradict each other.
    """
    if options.lr_scheduler_type:
        return _by_path(options, optimizer)
    if optim.is_schedule_free(optimizer):
        _refuse_warmup(options, "a schedule-free optimizer", "--optimizer_args warmup_steps=N")
        return Still(optimizer)
    if optim.relative_step(optimizer):
        _refuse_warmup(options, "Adafactor with its own rate", "--optimizer_args warmup_init=True")
        return Still(optimizer)
    if options.lr_scheduler.lower().startswith("adafactor:"):
        raise ConfigError(
            f"--lr_scheduler {options.lr_scheduler} needs an Adafactor that sets its own rate.",
            fix="Use --optimizer_type adafactor --optimizer_args relative_step=True.",
        )
    return LambdaLR(optimizer, factor(options, total))


def factor(options: ScheduleOptions, total: int) -> Factor:
    """The multiplier of the learning rate at each step from 0.

    Raises:
        ConfigError: As for `create`.
    """
    name = options.lr_scheduler.lower()
    if name not in NAMES:
        raise ConfigError(
            f"--lr_scheduler {options.lr_scheduler!r} is not known.", fix=did_you_mean(name, NAMES)
        )
    warmup = steps(options.lr_warmup_steps, total, "lr_warmup_steps")
    if name == "constant":
        _refuse_warmup(options, "--lr_scheduler constant", "--lr_scheduler constant_with_warmup")
        return lambda step: 1.0
    if name == "piecewise_constant":
        return _piecewise(options)
    if warmup >= total and name != "constant_with_warmup":
        raise ConfigError(
            f"--lr_warmup_steps is {warmup} steps, and the whole run {total}.",
            fix="Give fewer warm-up steps, or a percentage such as 5%.",
        )
    after = _after_warmup(name, options, warmup, total)
    return lambda step: (step / max(1, warmup)) if step < warmup else after(step - warmup)


def steps(value: int | float | str, total: int, flag: str) -> int:
    """Convert to a number of steps: 1 and more is a number of steps, below 1 is a ratio of `total`,
    "N%" is a percentage.

    >>> steps(0.1, 200, "lr_warmup_steps"), steps("5%", 200, "x"), steps(30, 200, "x")
    (20, 10, 30)
    """
    try:
        if isinstance(value, str) and value.strip().endswith("%"):
            ratio = float(value.strip()[:-1]) / 100
            if 0 <= ratio <= 1:
                return int(ratio * total)
        else:
            number = float(value)
            if 0 <= number < 1:
                return int(number * total)
            if number >= 1 and number == int(number):
                return int(number)
    except ValueError:
        pass
    raise ConfigError(
        f"--{flag} {value!r} is neither a number of steps, nor a ratio below 1, nor a percentage.",
        fix="Write 100, 0.05 or 5%.",
    )


def _after_warmup(name: str, options: ScheduleOptions, warmup: int, total: int) -> Factor:
    """The factor as a function of the steps since the warm-up."""
    rest = total - warmup
    least = options.lr_scheduler_min_lr_ratio or 0.0
    cycles, power = options.lr_scheduler_num_cycles, options.lr_scheduler_power

    def progress(step: int) -> float:
        return min(1.0, step / max(1, rest))

    def above(part: float) -> float:
        return least + (1 - least) * part

    if name == "linear":
        return lambda step: 1 - progress(step)
    if name == "cosine":
        return lambda step: 0.5 * (1 + math.cos(math.pi * progress(step)))
    if name == "cosine_with_min_lr":
        return lambda step: above(0.5 * (1 + math.cos(math.pi * cycles * progress(step))))
    if name == "cosine_with_restarts":
        return lambda step: _restarts(progress(step), cycles)
    if name == "polynomial":
        return lambda step: 1e-7 + (1 - 1e-7) * (1 - progress(step)) ** power
    if name == "inverse_sqrt":
        scale = options.lr_scheduler_timescale or warmup or 10_000
        return lambda step: math.sqrt(scale / (step + scale))
    if name == "rex":
        return _rex(options, progress, above)
    if name == "warmup_stable_decay":
        decay = steps(options.lr_decay_steps, total, "lr_decay_steps")
        if decay > rest:
            raise ConfigError(
                f"--lr_warmup_steps {warmup} and --lr_decay_steps {decay} exceed the {counted(total, 'step')} of the run.",
                fix="Make them smaller.",
            )
        stable = rest - decay
        return lambda step: (
            1.0
            if step < stable
            else above(
                0.5 * (1 + math.cos(math.pi * cycles * min(1.0, (step - stable) / max(1, decay))))
            )
        )
    return lambda step: 1.0  # constant_with_warmup


def _restarts(progress: float, cycles: int) -> float:
    return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * ((cycles * progress) % 1.0)))


def _rex(
    options: ScheduleOptions, progress: Callable[[int], float], above: Callable[[float], float]
) -> Factor:
    """Reflected exponential (Chen et al. 2021): (1 - p) / (alpha + beta (1 - p)), alpha + beta = 1."""
    given = literals(options.lr_scheduler_args, "lr_scheduler_args")
    alpha, beta = float(given.get("rex_alpha", 0.1)), float(given.get("rex_beta", 0.9))
    if alpha <= 0 or alpha + beta <= 0:
        raise ConfigError(
            f"rex_alpha {alpha} and rex_beta {beta} make no schedule.",
            fix="Give a rex_alpha above 0, such as rex_alpha=0.1 rex_beta=0.9.",
        )
    return lambda step: above((1 - progress(step)) / (alpha + beta * (1 - progress(step))))


def _piecewise(options: ScheduleOptions) -> Factor:
    """`step_rules="1:10,0.1:20,0.01"`: factor 1 for 10 steps, 0.1 until step 20, then 0.01."""
    rules = literals(options.lr_scheduler_args, "lr_scheduler_args").get("step_rules")
    try:
        *pairs, last = str(rules).split(",")
        parts = [(int(p.split(":")[1]), float(p.split(":")[0])) for p in pairs]
        end = float(last)
    except (ValueError, IndexError):
        raise ConfigError(
            f"--lr_scheduler piecewise_constant cannot read step_rules {rules!r}.",
            fix="Give --lr_scheduler_args 'step_rules=\"1:10,0.1:20,0.01\"': factor:until, then the last factor.",
        ) from None
    return lambda step: next((value for until, value in sorted(parts) if step < until), end)


def _by_path(options: ScheduleOptions, optimizer: Optimizer) -> Schedule:
    path = options.lr_scheduler_type or ""
    module, _, attribute = path.rpartition(".")
    try:
        where = importlib.import_module(module or "torch.optim.lr_scheduler")
        kind = getattr(where, attribute)
    except (ImportError, AttributeError):
        names = [n for n in dir(torch.optim.lr_scheduler) if n[:1].isupper()]
        raise ConfigError(
            f"--lr_scheduler_type {path!r} is neither a class of torch.optim.lr_scheduler nor importable.",
            fix=did_you_mean(attribute, names),
        ) from None
    try:
        return kind(optimizer, **literals(options.lr_scheduler_args, "lr_scheduler_args"))
    except TypeError as error:
        raise ConfigError(
            f"--lr_scheduler_type {path} refuses its arguments: {error}.",
            fix="Give them with --lr_scheduler_args key=value.",
        ) from error


def _refuse_warmup(options: ScheduleOptions, who: str, instead: str) -> None:
    if str(options.lr_warmup_steps) not in ("0", "0.0", "0%"):
        raise ConfigError(
            f"{who} takes no --lr_warmup_steps ({options.lr_warmup_steps}).", fix=f"Use {instead}."
        )


def _adafactor_lr(optimizer: Optimizer, own: Callable[..., Any], group: Mapping[str, Any]) -> float:
    states = [optimizer.state[p] for p in group["params"] if p in optimizer.state]
    return float(own(group, states[0])) if states and "step" in states[0] else 0.0
