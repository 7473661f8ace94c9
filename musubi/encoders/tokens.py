"""Texts as numbers of tokens, cut and filled to one length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from musubi.errors import ConfigError, counted


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
    return Tokens(found["input_ids"], found["attention_mask"].long())


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
