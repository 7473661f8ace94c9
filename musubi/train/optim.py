"""Optimizers by name: the usual names, classes of `torch.optim`, dotted paths."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, MissingPackageError, did_you_mean, nearest
from musubi.weights.dtypes import dtype_name

_OWN = "musubi.train.optimizers"
# name → module, class, package to install
_NAMED: Mapping[str, tuple[str, str, str]] = {
    "adamw": ("torch.optim", "AdamW", "torch"),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "pagedadamw8bit": ("bitsandbytes.optim", "PagedAdamW8bit", "bitsandbytes"),
    "adamw4bit": (f"{_OWN}.four_bit", "AdamW4bit", "musubi-diffusion"),
    "adafactor": ("transformers.optimization", "Adafactor", "transformers"),
    "lion": (f"{_OWN}.lion", "Lion", "musubi-diffusion"),
    "lion8bit": ("bitsandbytes.optim", "Lion8bit", "bitsandbytes"),
    "came": (f"{_OWN}.came", "CAME", "musubi-diffusion"),
    "muon": (f"{_OWN}.muon", "Muon", "musubi-diffusion"),
    "prodigy": ("prodigyopt", "Prodigy", "prodigyopt"),
    "prodigyplus": ("prodigyplus", "ProdigyPlusScheduleFree", "prodigy-plus-schedule-free"),
    "schedulefree": ("schedulefree", "AdamWScheduleFree", "schedulefree"),
}
# The same optimizers by their class names, as other tools write them.
_NAMED |= {
    "adamwschedulefree": _NAMED["schedulefree"],
    "prodigyplusschedulefree": _NAMED["prodigyplus"],
    "paged_adamw8bit": _NAMED["pagedadamw8bit"],
}
_PACKAGES = {module.partition(".")[0]: package for module, _, package in _NAMED.values()}


def create(
    name: str, groups: Iterable[Mapping[str, Any]], *, lr: float, arguments: Mapping[str, Any]
) -> Optimizer:
    """Make an optimizer.

    Args:
        name: `--optimizer_type`: a name of the table above in any case, a class of `torch.optim`,
            or a dotted path.
        groups: Parameter groups; those without "lr" get `lr`.
        lr: The learning rate of groups without their own.
        arguments: `--optimizer_args`, after `settled`.

    Raises:
        ConfigError: There is no such optimizer, or the optimizer refuses an argument.
        MissingPackageError: Its package is not installed.
    """
    kind: Any = find(name)
    arguments = settled(name, arguments, rate_given=False)
    rate: float | None = lr
    made = [dict(group) for group in groups]
    if arguments.get("relative_step"):
        rate = None
        for group in made:
            group.pop("lr", None)
    try:
        return kind(made, lr=rate, **arguments)
    except TypeError as error:
        accepted = [n for n in inspect.signature(kind).parameters if n not in ("params", "lr")]
        unknown = [n for n in arguments if n not in accepted]
        fix = did_you_mean(unknown[0], accepted) if unknown else f"It takes {', '.join(accepted)}."
        raise ConfigError(f"{kind.__name__} refuses its arguments: {error}.", fix=fix) from error
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--optimizer_type {name} cannot be used: {error}",
            fix="Change --optimizer_args or --optimizer_type.",
        ) from error


def find(name: str) -> type[Optimizer]:
    """The class of this name.

    Raises: ConfigError: There is none.
        MissingPackageError: Its package is not installed.
    """
    named = _NAMED.get(name.lower())
    if named is not None:
        return _imported(*named, option=name)
    if "." in name:
        module, _, attribute = name.rpartition(".")
        top = module.partition(".")[0]
        return _imported(module, attribute, _PACKAGES.get(top, top), option=name)
    known = _torch_optimizers()
    folded = {n.lower(): n for n in known}
    if name.lower() in folded:
        return getattr(torch.optim, folded[name.lower()])
    raise ConfigError(
        f"--optimizer_type {name!r} is neither known nor a class of torch.optim.",
        fix=did_you_mean(name, _NAMED if nearest(name, _NAMED) else [*_NAMED, *known])
        + " A class elsewhere is named by its dotted path.",
    )


def describe(optimizer: Optimizer, arguments: Mapping[str, Any]) -> str:
    """`module.Class(key=value,…)`, as LoRA files note it."""
    kind = type(optimizer)
    text = ",".join(f"{k}={v}" for k, v in arguments.items())
    return f"{kind.__module__}.{kind.__qualname__}{f'({text})' if text else ''}"


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Whether the optimizer is schedule-free: it averages the weights itself, and has `train()` and
    `eval()`.
    """
    return callable(getattr(optimizer, "train", None)) and callable(
        getattr(optimizer, "eval", None)
    )


def adapts(optimizer: Optimizer) -> bool:
    """Whether the optimizer adapts its own rate, which `--learning_rate` multiplies, as Prodigy does."""
    return any("d" in group for group in optimizer.param_groups)


def relative_step(optimizer: Optimizer) -> bool:
    """Whether the optimizer is an Adafactor that sets its own learning rate."""
    return _is_adafactor(type(optimizer)) and bool(optimizer.defaults.get("relative_step"))


def settled(name: str, arguments: Mapping[str, Any], *, rate_given: bool) -> dict[str, Any]:
    """Complete the arguments of an optimizer, depending on whether a learning rate was given.

    By default Adafactor sets its own rate and ignores a given one. So a given rate turns that off,
    and turns off the scaling by the size of each weight: then the rate means the same as for AdamW.

    Args:
        name: `--optimizer_type`.
        arguments: `--optimizer_args`.
        rate_given: Whether `--learning_rate` was given.
    """
    found = dict(arguments)
    if not _is_adafactor(find(name)):
        return found
    if found.get("warmup_init"):
        found["relative_step"] = True  # a warm-up from nothing only exists with its own rate
    if rate_given and "relative_step" not in found:
        found["relative_step"] = False
        found.setdefault("scale_parameter", False)
    found.setdefault("relative_step", True)
    return found


def check_beside(
    config: TrainConfig, optimizer: Optimizer, dtypes: Collection[torch.dtype]
) -> None:
    """Refuse options that have no effect with this optimizer.

    Args:
        config: Of the run.
        optimizer: The optimizer.
        dtypes: The dtypes of the trained weights.

    Raises:
        ConfigError: An option has no effect; the message names the option and the optimizer.
    """
    name = config.optimizer_type
    if config.ema_decay is not None and is_schedule_free(optimizer):
        raise ConfigError(
            f"--ema_decay cannot go with --optimizer_type {name}, which averages the weights itself.",
            fix="Leave out --ema_decay.",
        )
    if not config.stochastic_rounding:
        return
    if torch.bfloat16 not in dtypes:
        raise ConfigError(
            "--stochastic_rounding is for weights in bfloat16, and all that is trained is in "
            f"{', '.join(sorted(dtype_name(d) for d in dtypes))}.",
            fix="Leave it out, or train with --full --dit_dtype bfloat16.",
        )
    if is_schedule_free(optimizer) or adapts(optimizer):
        raise ConfigError(
            f"--stochastic_rounding steps one weight after the other, and --optimizer_type {name} "
            "needs all of them at once.",
            fix="Use adamw, adamw8bit, adamw4bit, adafactor, lion, came or muon.",
        )


def _is_adafactor(kind: type) -> bool:
    return kind.__name__ == "Adafactor" and kind.__module__.startswith("transformers.")


def _torch_optimizers() -> list[str]:
    return sorted(
        n
        for n, v in vars(torch.optim).items()
        if inspect.isclass(v) and issubclass(v, Optimizer) and v is not Optimizer
    )


def _imported(module: str, attribute: str, package: str, *, option: str) -> type[Optimizer]:
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"--optimizer_type {option} needs {error.name!r}, which is not installed.",
            fix=f"Run `pip install {package}`.",
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingPackageError(
            f"--optimizer_type {option} cannot be used here, since {module} fails to import: {error}.",
            fix="Reinstall it, or use --optimizer_type adamw.",
        ) from error
    if found is None:
        names = [n for n in vars(importlib.import_module(module)) if not n.startswith("_")]
        raise ConfigError(
            f"--optimizer_type {option}: {module} has no {attribute!r}.",
            fix=did_you_mean(attribute, names),
        )
    if not (inspect.isclass(found) and issubclass(found, Optimizer)):
        raise ConfigError(
            f"--optimizer_type {option} is not an optimizer class.", fix="Name a class."
        )
    return found
