"""Texts as numbers of tokens, cut and filled to one length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


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
