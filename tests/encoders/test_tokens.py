"""Texts that are longer than an encoder reads are cut, and that is said."""

import logging

import pytest
import torch

from musubi.encoders import tokens


class Words:
    """A token for each word."""

    def __call__(self, texts, *, max_length=None, **_):
        if isinstance(texts, str):
            return {"input_ids": texts.split()}
        counts = [min(len(t.split()), max_length) for t in texts]
        mask = torch.stack([torch.arange(max_length) < n for n in counts])
        return {"input_ids": mask.long(), "attention_mask": mask}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(tokens, "_told", {})


def test_how_many_tokens_are_cut_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        tokens.tokenized(Words(), ["a b c", "a b c d", "a b c d e f"], length=4)
    (line,) = (r.getMessage() for r in caplog.records)
    assert line == "The encoder reads 4 tokens, so 2 of 6 are cut off the end of 'a b c d e f'."


def test_a_long_dataset_is_not_told_text_by_text(caplog):
    with caplog.at_level(logging.WARNING):
        tokens.tokenized(Words(), [f"a b {i}" for i in range(50)], length=2)
    assert len(caplog.records) == 6
    assert "More texts" in caplog.records[-1].getMessage()
