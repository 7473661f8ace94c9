"""Texts as numbers of tokens, cut and filled to one length."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from musubi.errors import ConfigError, counted

_log = logging.getLogger("prompts and captions")
_TELL = 5  # texts that are named, for each encoder
_SHOWN = 60  # characters of them
_told: dict[int, int] = {}


@dataclass(frozen=True)
class Tokens:
    """Numbers of tokens and where they are real, B L each, on the host."""

    ids: torch.Tensor
    mask: torch.Tensor


def tokenized(tokenizer: Any, texts: list[str], *, length: int) -> Tokens:
    """Texts in `length` tokens each: longer ones are cut, shorter ones padded on the right."""
    found = tokenizer(
        texts,
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=length,
        return_attention_mask=True,
        return_tensors="pt",
    )
    say_cut(tokenizer, texts, found["attention_mask"], length)
    return Tokens(found["input_ids"], found["attention_mask"].long())


def say_cut(tokenizer: Any, texts: list[str], mask: torch.Tensor, length: int) -> None:
    """Say how many tokens of a text are more than an encoder reads; after a few texts no more.

    Args:
        tokenizer: What made the tokens.
        texts: What it was given.
        mask: Where tokens are real, B L.
        length: The most that the encoder reads.
    """
    for text, real in zip(texts, mask.sum(dim=1).tolist(), strict=True):
        if real < length or _told.get(length, 0) > _TELL:
            continue
        count = len(tokenizer(text, verbose=False)["input_ids"])
        if count <= length:
            continue
        _told[length] = _told.get(length, 0) + 1
        if _told[length] > _TELL:
            _log.warning("More texts are longer than the %d tokens of the encoder.", length)
            continue
        shown = text if len(text) <= _SHOWN else f"…{text[-_SHOWN:]}"
        _log.warning(
            "The encoder reads %d tokens, so %d of %d are cut off the end of %r.",
            length,
            count - length,
            count,
            shown,
        )


def check_ids(ids: torch.Tensor, count: int) -> None:
    """Refuse numbers of tokens that an encoder does not have: the tokenizer is another model's.

    Args:
        ids: Numbers of tokens, on the host.
        count: How many tokens the encoder knows; 0 when that cannot be told.

    Raises:
        ConfigError: A number is out of range.
    """
    if count and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
        raise ConfigError(
            f"The tokenizer gives a token the number {int(ids.max())}, and the text encoder knows "
            f"{counted(count, 'token')}.",
            fix="Give the tokenizer that was published with the text encoder.",
        )
