"""Restore the state of any optimizer exactly, after a check against the shapes that it makes itself."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.optim import Optimizer


def restore(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Restore what `state_dict` returned.

    Args:
        optimizer: A new one, of the same kind and the same parameters.
        saved: The saved groups and states.

    Raises:
        ValueError: A state has another shape than this optimizer makes for its parameter.
    """
    places = list(_places(optimizer, saved))
    _check(optimizer, saved["state"], places)
    optimizer.load_state_dict(dict(saved))
    for index, p, _ in places:
        if index in saved["state"]:
            _exact(optimizer.state[p], saved["state"][index], p.device)


def _places(optimizer: Optimizer, saved: Mapping[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
    """(number in the file, parameter, group)."""
    for group, other in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for index, p in zip(other["params"], group["params"], strict=True):
            yield index, p, group


def _check(optimizer: Optimizer, states: Mapping[Any, Any], places: list[Any]) -> None:
    expected: dict[Any, dict[str, list[tuple[int, ...]]]] = {}
    for index, p, group in places:
        if index not in states:
            continue
        kind = (id(group), p.shape, p.dtype, p.device)
        if kind not in expected:
            # Prodigy keeps one number for a weight that begins with zeros.
            tries = [
                _made(optimizer, begin(p), group) for begin in (torch.ones_like, torch.zeros_like)
            ]
            common = tries[0].keys() & tries[1].keys()
            expected[kind] = {
                name: [made[name] for made in tries] for name in tries[0] if name in common
            }
        theirs = dict(_shapes(states[index]))
        for name, shapes in expected[kind].items():
            if name not in theirs:
                raise ValueError(f"the optimizer's state of parameter {index} lacks {name!r}")
            if theirs[name] not in shapes:
                raise ValueError(
                    f"the optimizer's {name!r} of parameter {index} has the shape {theirs[name]}, "
                    f"and {shapes[0]} is needed"
                )


def _made(
    optimizer: Optimizer, start: torch.Tensor, group: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """The shapes of the states that the optimizer makes for such a parameter; empty if that cannot be tried."""
    probe = copy.copy(optimizer)
    like = torch.nn.Parameter(start)
    like.grad = torch.ones_like(start)
    settings = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
    if settings.get("lr", 0.0) is not None:
        settings["lr"] = 0.0 if not isinstance(settings["lr"], torch.Tensor) else settings["lr"] * 0
    probe.state = defaultdict(dict)
    probe.param_groups = [{**settings, "params": [like]}]
    try:
        if callable(getattr(probe, "train", None)):
            type(probe).train(probe)  # type: ignore[attr-defined]
        type(probe).step(probe)  # type: ignore[call-arg]  # a schedule wraps that of the instance
        states = type(probe).state_dict(probe)["state"]
    except Exception:  # an optimizer of anybody's may refuse to be tried in any way
        return {}
    return dict(_shapes(next(iter(states.values()), {})))


def _shapes(state: Any, prefix: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from _shapes(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(state, torch.Tensor):
        yield prefix, tuple(state.shape)


def _exact(state: dict[Any, Any], saved: Mapping[Any, Any], device: torch.device) -> None:
    """Restore the saved dtypes: PyTorch casts each state to the dtype of its parameter."""
    for key, value in saved.items():
        own = state.get(key)
        if isinstance(value, Mapping) and isinstance(own, dict):
            _exact(own, value, device)
            continue
        if not (isinstance(value, torch.Tensor) and isinstance(own, torch.Tensor)):
            continue
        if own.dtype != value.dtype and own.shape == value.shape:
            state[key] = value.to(device, copy=True)
