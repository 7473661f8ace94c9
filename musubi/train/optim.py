"""Optimizers by name: the field's own names, classes of `torch.optim`, dotted paths."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from musubi.errors import ConfigError, MissingPackageError, did_you_mean, nearest

# name → module, class, package to install
_NAMED: Mapping[str, tuple[str, str, str]] = {
    "adamw": ("torch.optim", "AdamW", "torch"),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "adafactor": ("transformers.optimization", "Adafactor", "transformers"),
    "schedulefree": ("schedulefree", "AdamWScheduleFree", "schedulefree"),
}


def create(
    name: str, groups: Iterable[Mapping[str, Any]], *, lr: float, arguments: Mapping[str, Any]
) -> Optimizer:
    """Make an optimizer.

    Args:
        name: `--optimizer_type`: a name of the table above in any case, a class of `torch.optim`,
            or a dotted path.
        groups: Parameter groups; those without "lr" get `lr`.
        lr: The learning rate.
        arguments: `--optimizer_args`.

    Raises:
        ConfigError: There is no such optimizer, or it refuses an argument.
        MissingPackageError: Its package is not installed.
    """
    kind: Any = find(name)
    arguments = dict(arguments)
    rate: float | None = lr
    made = [dict(group) for group in groups]
    if _is_adafactor(kind):
        rate = _adafactor_rate(arguments, lr)
        if rate is None:
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
    """The class of that name.

    Raises:
        ConfigError: There is none.
        MissingPackageError: Its package is not installed.
    """
    named = _NAMED.get(name.lower())
    if named is not None:
        return _imported(*named, option=name)
    if "." in name:
        module, _, attribute = name.rpartition(".")
        return _imported(module, attribute, module.partition(".")[0], option=name)
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
    """Whether it averages its weights itself: it has `train()` and `eval()`, and no schedule."""
    return callable(getattr(optimizer, "train", None)) and callable(
        getattr(optimizer, "eval", None)
    )


@contextlib.contextmanager
def averaged(optimizer: Optimizer | None) -> Iterator[None]:
    """While saving or sampling: the weights that a schedule-free optimizer would hand out."""
    if optimizer is None or not is_schedule_free(optimizer):
        yield
        return
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]


def relative_step(optimizer: Optimizer) -> bool:
    """Whether it is an Adafactor that sets its own learning rate."""
    return _is_adafactor(type(optimizer)) and bool(optimizer.defaults.get("relative_step"))


def _is_adafactor(kind: type) -> bool:
    return kind.__name__ == "Adafactor" and kind.__module__.startswith("transformers.")


def _adafactor_rate(arguments: dict[str, Any], lr: float) -> float | None:
    """Its own rate unless told otherwise; a warm-up from nothing only exists with its own."""
    if arguments.get("warmup_init"):
        arguments["relative_step"] = True
    arguments.setdefault("relative_step", True)
    return None if arguments["relative_step"] else lr


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
