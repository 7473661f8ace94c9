"""Texts as FramePack reads them: real tokens, then zeros; another instruction; CLIP's pooled text."""

import pytest
import torch

from musubi.architectures.framepack import ARCHITECTURE, text
from musubi.encoders.llama.network import AFTER, BEFORE
from musubi.testing import twins
from musubi.weights.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = twins.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return load_tokenizer(ARCHITECTURE.component("text_encoder1"), folder, None)


def ids_of(tokenizer, words):
    """A token a byte, without the end that this toy puts behind every text."""
    return tokenizer(words)["input_ids"][:-1]


SAID = "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"


@pytest.mark.parametrize(("system", "before"), [(None, BEFORE), ("Be brief.", SAID)])
@torch.no_grad()
def test_hidden_states_of_the_real_tokens(tokenizer, system, before):
    llm = twins.build_twin(ARCHITECTURE.component("text_encoder1"))
    llm.trim()
    llm.finish()
    captions = ["a cat", "", "x" * 400]
    found = text.encode_llama(llm, tokenizer, captions, system=system)
    start = len(ids_of(tokenizer, before))
    for caption, (hidden, mask) in zip(captions, found, strict=True):
        # The text alone, without padding and in no company; 256 tokens are kept.
        cut = {"truncation": True, "max_length": start + 256}
        ids = torch.tensor([tokenizer(before + caption + AFTER, **cut)["input_ids"]])
        expected = llm(ids, torch.ones_like(ids))[0, start:]
        assert hidden.shape == (512, 32)
        assert mask.dtype == torch.bool
        assert mask.sum() == len(expected)
        torch.testing.assert_close(hidden[: len(expected)], expected, rtol=1e-4, atol=1e-5)
        assert not hidden[len(expected) :].any()
        assert not mask[len(expected) :].any()


@torch.no_grad()
def test_the_pooled_text(tokenizer):
    clip = twins.build_twin(ARCHITECTURE.component("text_encoder2"))
    clip.finish()
    (pooled,) = text.encode_clip(clip, tokenizer, ["a cat"])
    ids = torch.tensor([tokenizer("a cat")["input_ids"]])
    expected = clip(ids, torch.tensor([ids.shape[1] - 1]))[0]
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
