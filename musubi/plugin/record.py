"""What one cache record holds: named tensors, declared once, checked when written and when read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Field:
    """One tensor of a record.

    Args:
        name: As the runtime's verbs name it: "latents", "t5", "llm_mask".
        dims: Letters of its axes, without a batch axis: "CFHW" for latents, "LD" for text.
            A fixed axis may be given as a number in `sizes`.
        sizes: Axis letter to its fixed length.
        varlen: Batches hand over a list of tensors instead of a stack. An axis may have length 0.
        many: Any number of tensors, each of its own size: a record holds `name_0`, `name_1`, …, and
            batches hand over a list of them for each item.
        whole: It holds whole numbers, such as indices of frames.
        optional: The record may lack it.
        usual: Axis letter to a length that is common, or to the name of the DiT's number that it
            equals; for made-up records, from which memory and time are estimated.
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
        """Whether its file key carries the latent's frames, height and width."""
        return self.name.startswith("latents")

    @property
    def is_mask(self) -> bool:
        """Whether it says which parts of others are real."""
        return is_mask(self.name)


def numbered(name: str) -> tuple[str, int] | None:
    """A name and the number behind it: how one of `many` tensors is called.

    >>> numbered("latents_control_1"), numbered("latents")
    (('latents_control', 1), None)
    """
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem and number.isascii() and number.isdigit() else None


def is_mask(name: str) -> bool:
    """Whether a field of that name says which parts of others are real, by ones and zeros.

    Its file key carries no dtype, and in batches it stays on the host, where lengths are needed.
    """
    return name.endswith("_mask")


LOSS_WEIGHT = Field(name="loss_weight", dims="FHW", optional=True)
"""Of every task's media record: how much each latent cell counts in the loss, 0 to 1; see `Clip.mask`."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The fields of a task's media record and text record, and the layout's version.

    Raise `version` when the meaning of a field changes: all older records become stale.
    `sectioned` says that a video clip becomes one record a section, numbered in its file name.
    """

    media: tuple[Field, ...]
    text: tuple[Field, ...]
    version: int = 1
    sectioned: bool = False

    @property
    def fields(self) -> tuple[Field, ...]:
        """All of them."""
        return (*self.media, *self.text)

    @property
    def kept(self) -> tuple[Field, ...]:
        """What a media record can hold: its fields, and what the engine keeps beside them."""
        return (*self.media, LOSS_WEIGHT)


def declared(fields: Iterable[Field], name: str) -> Field | None:
    """The field that a tensor of that name in a record belongs to."""
    counted = numbered(name)
    for one in fields:
        if one.name == name and not one.many:
            return one
        if one.many and counted is not None and counted[0] == one.name:
            return one
    return None


def lacking(fields: Iterable[Field], names: Iterable[str]) -> list[str]:
    """The fields that are not optional, and of which a record with these `names` has no tensor."""
    held = set(names)
    stems = {counted[0] for name in held if (counted := numbered(name)) is not None}
    return [f.name for f in fields if not f.optional and f.name not in (stems if f.many else held)]
