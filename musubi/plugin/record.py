"""What one cache record holds: declared tensors, which are checked when written and when read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Field:
    """One tensor of a record.

    Args:
        name: The name that the runtime's methods use: "latents", "t5", "llm_mask".
        dims: One letter for each axis, without a batch axis: "CFHW" for latents, "LD" for text. The
            length of a fixed axis is in `sizes`.
        sizes: Letter of an axis → its fixed length.
        varlen: A batch holds a list of tensors instead of one stacked tensor. An axis may have
            length 0.
        many: Any number of tensors, each of its own size: a record holds `name_0`, `name_1`, …, and
            a batch holds a list of them for each item.
        whole: The tensor holds whole numbers, such as indices of frames.
        optional: A record may lack the tensor.
        usual: Letter of an axis → a common length, or the name of the DiT's number that equals the
            length. It is used for made-up records, from which memory and time are estimated.
    """

    name: str
    dims: str
    sizes: tuple[tuple[str, int], ...] = ()
    varlen: bool = False
    many: bool = False
    whole: bool = False
    optional: bool = False
    usual: tuple[tuple[str, int | str], ...] = ()

    @property
    def is_latents(self) -> bool:
        """Whether the tensor's key in the file includes the latents' frames, height and width."""
        return self.name.startswith("latents")

    @property
    def is_mask(self) -> bool:
        """Whether the tensor is a mask: it marks which parts of other tensors are real, not padding."""
        return is_mask(self.name)


def numbered(name: str) -> tuple[str, int] | None:
    """Split the name of one of `many` tensors into the field's name and the number.

    >>> numbered("latents_control_1"), numbered("latents")
    (('latents_control', 1), None)
    """
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem and number.isascii() and number.isdigit() else None


def is_mask(name: str) -> bool:
    """Whether a field of this name is a mask:

    ones where other tensors are real, zeros for padding. A mask's key in the file has no dtype. In
    batches a mask stays on the host, where its length is needed.
    """
    return name.endswith("_mask")


LOSS_WEIGHT = Field(name="loss_weight", dims="FHW", optional=True)
"""A field of every task's media record: how much each latent cell counts in the loss, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The fields of a task's media record and text record, and the layout's version.

    Raise `version` when the meaning of a field changes: all older records become stale. With
    `sectioned`, a video clip becomes one record for each section; the file name has the number.
    """

    media: tuple[Field, ...]
    text: tuple[Field, ...]
    version: int = 1
    sectioned: bool = False

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of both records."""
        return (*self.media, *self.text)

    @property
    def kept(self) -> tuple[Field, ...]:
        """What a media record can hold: the task's fields, and the field that the engine adds."""
        return (*self.media, LOSS_WEIGHT)


def declared(fields: Iterable[Field], name: str) -> Field | None:
    """The field that a tensor of this name belongs to; None if there is none."""
    counted = numbered(name)
    for one in fields:
        if one.name == name and not one.many:
            return one
        if one.many and counted is not None and counted[0] == one.name:
            return one
    return None


def lacking(fields: Iterable[Field], names: Iterable[str]) -> list[str]:
    """The required fields that a record with these tensor `names` lacks."""
    held = set(names)
    stems = {counted[0] for name in held if (counted := numbered(name)) is not None}
    return [f.name for f in fields if not f.optional and f.name not in (stems if f.many else held)]
