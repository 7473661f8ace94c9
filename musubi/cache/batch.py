"""Join records into a batch; training, generation and tests all use this code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from musubi.errors import DataError
from musubi.plugin.record import Field, Schema, numbered
from musubi.plugin.runtime import Record

Batch = dict[str, Any]
"""Field name → a stacked tensor with a batch axis; a list if the field is varlen; a list of lists
if it is `many`.
"""


# Keys of a batch that only the engine reads; no runtime sees them.
REGULARIZATION = "regularization"
"""Key of a batch of regularization items, which show what the model should keep."""

CLASS_CAPTIONS = "class_captions"
"""Key of the text fields of captions in which the class word stands for the trigger."""

HAS_CLASS = "has_class"
"""Key of a list: whether an item has such a caption."""


def batch_of(
    records: Sequence[Record],
    schema: Schema,
    names: Sequence[str] | None = None,
    *,
    place: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> Batch:
    """Join records for `Runtime.condition`.

    Args:
        records: Media and text records, joined: one for each item.
        schema: Says how each field is joined.
        names: Names of the items, for messages.
        place: A function that moves each new tensor.

    Raises:
        DataError: A record lacks a field that others have, or its shape differs from the others'.
    """
    called = names or [f"record {i}" for i in range(len(records))]
    batch: Batch = {}
    for field in (*schema.kept, *schema.text):
        if field.many:
            found = [[place(t) for t in _several(record, field.name)] for record in records]
            if any(found):
                batch[field.name] = found
            continue
        column = [record.get(field.name) for record in records]
        present = [tensor for tensor in column if tensor is not None]
        if not present:
            continue
        if len(present) < len(column):
            without = called[next(i for i, tensor in enumerate(column) if tensor is None)]
            raise DataError(
                f"The record of {without!r} lacks {field.name!r}, which others in its batch have.",
                fix="Cache the dataset again.",
            )
        if field.varlen:
            batch[field.name] = [place(tensor) for tensor in present]
        else:
            batch[field.name] = place(_stack(field, present, called))
    return batch


def _several(record: Mapping[str, torch.Tensor], name: str) -> list[torch.Tensor]:
    """The tensors `name_0`, `name_1`, …, by number."""
    ranked = {
        counted[1]: tensor
        for key, tensor in record.items()
        if (counted := numbered(key)) is not None and counted[0] == name
    }
    return [ranked[i] for i in sorted(ranked)]


def _stack(field: Field, tensors: Sequence[torch.Tensor], names: Sequence[str]) -> torch.Tensor:
    for tensor, name in zip(tensors, names, strict=True):
        if tensor.shape != tensors[0].shape or tensor.dtype != tensors[0].dtype:
            raise DataError(
                f"{field.name!r} of {name!r} is {_described(tensor)}, and of {names[0]!r} in the "
                f"same batch {_described(tensors[0])}.",
                fix="Cache the dataset again, or set batch_size = 1.",
            )
    return torch.stack(list(tensors))


def _described(tensor: torch.Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"
