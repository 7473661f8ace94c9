"""What one cache record holds: named tensors, declared once, checked when written and when read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Field:
    """One tensor of a record.

    Args:
        name: As the runtime's verbs name it: "latents", "t5", "llm_mask".
        dims: Letters of its axes, without a batch axis: "CFHW" for latents, "LD" for text.
            A fixed axis may be given as a number in `sizes`.
        sizes: Axis letter to its fixed length.
        varlen: Batches hand over a list of tensors instead of a stack.
        optional: The record may lack it.
        usual: Axis letter to a length that is common, or to the name of the DiT's number that it
            equals; for made-up records, from which memory and time are estimated.
    """

    name: str
    dims: str
    sizes: tuple[tuple[str, int], ...] = ()
    varlen: bool = False
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


def is_mask(name: str) -> bool:
    """Whether a field of that name says which parts of others are real, by ones and zeros.

    Its file key carries no dtype, and in batches it stays on the host, where lengths are needed.
    """
    return name.endswith("_mask")


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
