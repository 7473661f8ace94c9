"""Texts as FramePack reads them: LLaVA-Llama3's hidden states of the real tokens, and CLIP-L's pooled ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from musubi.encoders.clip_text import network as clip_network
from musubi.encoders.llama import network as llama_network

TOKENS = 512
"""Length of a stored text; behind its real tokens, 256 at most, are zeros."""


def encode_llama(
    encoder: nn.Module, tokenizer: Any, texts: list[str], *, system: str | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each text its hidden states (512, D) and which of them are real, (512,), bool.

    Args:
        encoder: The language model.
        tokenizer: Its tokenizer.
        texts: Captions or prompts.
        system: What the model is told to do, in place of the usual instruction.
    """
    before = None if system is None else llama_network.instruction(system)
    out: list[tuple[torch.Tensor, torch.Tensor]] = []
    for hidden, mask in llama_network.encode(encoder, tokenizer, texts, before=before):
        count = int(mask.sum())
        real = F.pad(hidden[:count], (0, 0, 0, TOKENS - count))
        out.append((real, torch.arange(TOKENS) < count))
    return out


def encode_clip(encoder: nn.Module, tokenizer: Any, texts: list[str]) -> list[torch.Tensor]:
    """For each text the pooled text (D,)."""
    return [pooled for pooled, _ in clip_network.encode(encoder, tokenizer, texts)]
