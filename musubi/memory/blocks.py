"""The blocks of a network, and how a policy puts itself around each of them.

A policy is a function `(block, inner, *args, **kwargs)` that calls `inner`. Policies nest in the
order they are put on, the last one outermost; names and parameters stay as they are.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from musubi.plugin.traits import Traits

Around = Callable[..., Any]
_POLICIES = "_musubi_policies"
_FORWARD = "_musubi_forward"


def blocks(module: nn.Module, traits: Traits) -> Iterator[nn.Module]:
    """The blocks of all stacks, in the order they run."""
    for stack in stacks(module, traits):
        yield from stack


def stacks(module: nn.Module, traits: Traits) -> list[list[nn.Module]]:
    """The blocks of each stack."""
    return [list(module.get_submodule(path).children()) for path in traits.stacks]


def wrap(block: nn.Module, name: str, around: Around) -> None:
    """Put a policy around the block; one of that name is replaced where it stands."""
    policies: dict[str, Around] = block.__dict__.get(_POLICIES, {})
    block.__dict__[_POLICIES] = {**policies, name: around}
    if not policies:
        # Bound methods, not closures: a deep copy of the module then calls the copy's own blocks.
        block.__dict__[_FORWARD] = block.__dict__.get("forward")
        block.__dict__["forward"] = types.MethodType(_run, block)


def unwrap(block: nn.Module, name: str) -> None:
    """Take a policy off; nothing happens when it is not there."""
    policies: dict[str, Around] = dict(block.__dict__.get(_POLICIES, {}))
    if policies.pop(name, None) is None:
        return
    block.__dict__[_POLICIES] = policies
    if not policies:
        before = block.__dict__.pop(_FORWARD)
        if before is None:
            del block.__dict__["forward"]
        else:
            block.__dict__["forward"] = before


def _run(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    own = block.__dict__[_FORWARD]
    call = functools.partial(type(block).forward, block) if own is None else own
    for around in block.__dict__[_POLICIES].values():
        call = functools.partial(around, block, call)
    return call(*args, **kwargs)
