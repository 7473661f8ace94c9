"""What a hub folder's `config.json` says of a network, beside what its tensors show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musubi.errors import CheckpointError


def part_of(config: Mapping[str, Any] | None, kind: str, inner: str) -> dict[str, Any] | None:
    """The part of a `config.json` that is about one network; None when there is no such part.

    Args:
        config: The file, or None when there is none.
        kind: The network's `model_type`.
        inner: Where a model that has the network as a part keeps its part, such as "text_config".
    """
    if not config:
        return None
    if config.get("model_type") == kind:
        return dict(config)
    part = config.get(inner)
    if isinstance(part, Mapping) and part.get("model_type", kind) == kind:
        return dict(part)
    return None


def read(made: type[Any], part: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
    """The part as transformers' own class, which knows the values that are left out.

    Args:
        made: The class, such as transformers' LlamaConfig.
        part: What `part_of` gave.
        sizes: Name in the config → the number that the tensors show.

    Raises:
        CheckpointError: A value is none, or is not what the tensors show.
    """
    try:
        config = made(**part)
        for name, shown in sizes.items():
            said = getattr(config, name)
            if said != shown:
                raise CheckpointError(
                    f"Its config.json says {name} = {said}, and its tensors show {shown}.",
                    fix="Give a folder whose config.json was published with its weights.",
                )
    except CheckpointError:
        raise
    except Exception as error:  # transformers checks values, each kind in its own way
        raise CheckpointError(
            f"Its config.json cannot be used: {error}",
            fix="Fetch config.json again from where the weights were published.",
        ) from error
    return config


def heads(config: Any, width: int, name: str = "num_attention_heads") -> int:
    """How many attention heads there are: a number that divides the width.

    Raises:
        CheckpointError: It does not.
    """
    count = getattr(config, name)
    if type(count) is not int or count < 1 or width % count:
        raise CheckpointError(
            f"Its config.json says {name} = {count!r}, which does not divide {width}.",
            fix="Fetch config.json again from where the weights were published.",
        )
    return count


def beside_default(said: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that differ from those of the published model, which need not be said."""
    return {name: value for name, value in said.items() if value != usual[name]}
